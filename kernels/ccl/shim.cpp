// oneCCL moves bytes for callers that speak C: every function returns 0, or 1 with the reason in dqrm_ccl_error().
//
// Nothing is summed here: the callers sum in rank order, so that every transport gives the same bits.

#include <oneapi/ccl.hpp>

#include <cstddef>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <vector>

namespace {

thread_local std::string last_error;

struct World {
    ccl::shared_ptr_class<ccl::kvs> store;  // serves the other ranks as long as it lives, where this is rank 0
    std::unique_ptr<ccl::communicator> ranks;
};

template <class Action>
int guarded(Action &&action) noexcept {
    try {
        action();
        return 0;
    } catch (const std::exception &error) {
        last_error = error.what();
    } catch (...) {
        last_error = "an error without words";
    }
    return 1;
}

const ccl::communicator &ranks_of(void *world) { return *static_cast<World *>(world)->ranks; }

}  // namespace

extern "C" {

const char *dqrm_ccl_error() { return last_error.c_str(); }

size_t dqrm_ccl_address_bytes() { return ccl::kvs::address_max_size; }

int dqrm_ccl_version(char *text, size_t size) {
    return guarded([&] {
        const auto version = ccl::get_library_version();
        std::snprintf(text, size, "%u.%u.%u", version.major, version.minor, version.update);
    });
}

// Rank 0, before the others: the place where all will meet, and its address for them.
int dqrm_ccl_host(char *address, void **world) {
    return guarded([&] {
        ccl::init();
        auto made = std::make_unique<World>();
        made->store = ccl::create_main_kvs();
        const auto place = made->store->get_address();
        std::memcpy(address, place.data(), place.size());
        *world = made.release();
    });
}

int dqrm_ccl_visit(const char *address, void **world) {
    return guarded([&] {
        ccl::init();
        auto made = std::make_unique<World>();
        ccl::kvs::address_type place;
        std::memcpy(place.data(), address, place.size());
        made->store = ccl::create_kvs(place);
        *world = made.release();
    });
}

// Every rank, once, after it hosts or visits.
int dqrm_ccl_join(void *world, int size, int rank) {
    return guarded([&] {
        auto *place = static_cast<World *>(world);
        place->ranks = std::make_unique<ccl::communicator>(ccl::create_communicator(size, rank, place->store));
    });
}

int dqrm_ccl_leave(void *world) {
    return guarded([&] { delete static_cast<World *>(world); });
}

int dqrm_ccl_barrier(void *world) {
    return guarded([&] { ccl::barrier(ranks_of(world)); });
}

int dqrm_ccl_broadcast(void *world, void *buffer, size_t bytes, int root) {
    return guarded([&] { ccl::broadcast(buffer, bytes, ccl::datatype::uint8, root, ranks_of(world)).wait(); });
}

// Each rank's bytes arrive at a place of their own.
int dqrm_ccl_allgatherv(void *world, const void *send, size_t bytes, void *const *places, const size_t *counts) {
    return guarded([&] {
        const auto &ranks = ranks_of(world);
        const std::vector<void *> receive(places, places + ranks.size());
        const std::vector<size_t> lengths(counts, counts + ranks.size());
        ccl::allgatherv(send, bytes, receive, lengths, ccl::datatype::uint8, ranks).wait();
    });
}

int dqrm_ccl_alltoall(void *world, const void *send, void *receive, size_t bytes_each) {
    return guarded([&] { ccl::alltoall(send, receive, bytes_each, ccl::datatype::uint8, ranks_of(world)).wait(); });
}

// Parts lie one behind the other, in the order of the ranks.
int dqrm_ccl_alltoallv(void *world, const void *send, const size_t *sent, void *receive, const size_t *arriving) {
    return guarded([&] {
        const auto &ranks = ranks_of(world);
        const std::vector<size_t> lengths(sent, sent + ranks.size());
        const std::vector<size_t> places(arriving, arriving + ranks.size());
        ccl::alltoallv(send, lengths, receive, places, ccl::datatype::uint8, ranks).wait();
    });
}

}  // extern "C"
