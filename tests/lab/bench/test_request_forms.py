"""Answers in binary are read where their JSON ends, whatever the floats behind it look like."""

import numpy as np

from dqrm_cpu.lab.bench.serve.request_forms import binary_answer


def test_bytes_of_floats_that_look_like_json_are_floats() -> None:
    values = np.frombuffer(b'}}}}{"a\x3fab}\x3f', "<f4")
    body = b'{"outputs": [{"parameters": {"binary_data_size": 12}}]}' + values.tobytes()
    np.testing.assert_array_equal(np.array(binary_answer(body), np.float32), values)
