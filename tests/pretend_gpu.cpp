// What torch asks about the current GPU before an operation: a CPU build has no answer, and stops.
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {
struct PretendGuard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
    c10::Device getDevice() const override { return {c10::DeviceType::CUDA, 0}; }
};
C10_REGISTER_GUARD_IMPL(CUDA, PretendGuard);
}  // namespace
