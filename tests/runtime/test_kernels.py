"""The engine's linear layers against NumPy, with every instruction set there is."""

import numpy as np
import pytest
import torch
from helpers.kernels import EPILOGUES, split_blocks

BLOCKS = ((8, 1), (4, 1), (16, 1), (1, 1), (3, 5), (8, 4), (2, 2))
FRAMES = (1, 2, 7, 8, 9, 16, 17, 31, 32, 33, 250)


def blockwise(rng, shape, block, zeros):
    """A random matrix of which a share of the blocks is zero."""
    grid = [-(-n // by) for n, by in zip(shape, block, strict=True)]
    kept = np.kron(rng.random(grid) >= zeros, np.ones(block))
    return (rng.standard_normal(shape) * kept[: shape[0], : shape[1]]).astype(
        np.float32
    )


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def product(x, matrix, bias=0.0):
    """x W' + b in double precision."""
    return x.astype(np.float64) @ matrix.astype(np.float64).T + bias


def close(y, expected, scale=1.0):
    np.testing.assert_allclose(y, expected, rtol=2e-5, atol=2e-5 * scale)


# ---- linear layers -------------------------------------------------------------------


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("zeros", (0.0, 0.5, 0.9, 1.0))
def test_blocks_multiply_as_their_dense_matrix(kernels, rng, block, zeros):
    for shape in ((16, 12), (37, 29), (8, 1), (5, 64), (1, 3)):
        matrix, bias = blockwise(rng, shape, block, zeros), normal(rng, shape[0])
        with kernels.linear(matrix, bias, block=block) as layer:
            for frames in (1, 8, 13, 32, 40):
                x = normal(rng, frames, shape[1])
                close(layer.run(x), product(x, matrix, bias), shape[1] ** 0.5)


@pytest.mark.parametrize("frames", FRAMES)
@pytest.mark.parametrize("width", (8, 16, 32))
def test_any_number_of_frames_in_any_tiles(kernels, rng, frames, width):
    sparse, dense = blockwise(rng, (24, 33), (8, 1), 0.7), normal(rng, 21, 33)
    for matrix, block in ((sparse, (8, 1)), (dense, None)):
        x = normal(rng, frames, 33)
        with kernels.linear(matrix, block=block) as layer:
            close(layer.run(x, width=width), product(x, matrix), 6)


@pytest.mark.parametrize("block", ((8, 1), None))
def test_long_recordings(kernels, rng, block):
    matrix, x = blockwise(rng, (16, 16), (8, 1), 0.5), normal(rng, 4096, 16)
    with kernels.linear(matrix, block=block) as layer:
        close(layer.run(x), product(x, matrix), 4)
    matrix, x = whole(rng, 16, 16, 0.5), whole_frames(rng, 4096, 16)
    with kernels.linear(matrix, scale=np.ones(16, np.float32), block=block) as layer:
        np.testing.assert_allclose(
            layer.run(x), product(x, matrix), rtol=1e-5, atol=1e-2
        )


def test_rows_of_blocks_without_a_block(kernels, rng):
    matrix = normal(rng, 40, 24)
    matrix[8:24] = 0.0
    bias, x = normal(rng, 40), normal(rng, 9, 24)
    with kernels.linear(matrix, bias, block=(8, 1)) as layer:
        y = layer.run(x)
    close(y, product(x, matrix, bias), 5)
    assert (y[:, 8:24] == bias[8:24]).all()


@pytest.mark.parametrize("share", (0.02, 0.3))
def test_single_weights_in_no_order(kernels, rng, share):
    """Masks of single weights, which packing by rows, by fours and singly all allow."""
    matrix = normal(rng, 45, 70) * (rng.random((45, 70)) < share)
    x = normal(rng, 33, 70)
    with kernels.linear(matrix.astype(np.float32), block=(1, 1)) as layer:
        close(layer.run(x), product(x, matrix), 8)


def test_half_precision_weights_are_those_of_the_file(kernels, rng):
    matrix = normal(rng, 19, 23).astype(np.float16)
    matrix[0, :4] = np.array([6e-8, 65504, -0.0, 3e-5], np.float16)
    x = normal(rng, 11, 23)
    for block in (None, (8, 1)):
        with kernels.linear(matrix, block=block) as layer:
            np.testing.assert_allclose(
                layer.run(x), product(x, matrix), rtol=2e-5, atol=1e-4
            )


def reference(epilogue, z, y, factor):
    z = torch.from_numpy(z)
    if epilogue == "gate":
        return torch.nn.functional.glu(z, dim=-1).numpy()
    if epilogue == "add":
        return y + factor * z.numpy()
    functions = {
        "store": lambda z: z,
        "relu": torch.relu,
        "swish": torch.nn.functional.silu,
        "tanh": torch.tanh,
        "gelu": torch.nn.functional.gelu,
        "hardtanh": torch.nn.functional.hardtanh,
        "selu": torch.selu,
    }
    return functions[epilogue](z).numpy()


@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize("int8", (False, True))
def test_epilogues(kernels, rng, epilogue, int8):
    for rows, zeros in ((48, 0.0), (48, 0.8), (22, 0.0), (22, 0.8)):
        matrix, bias = blockwise(rng, (rows, 30), (2, 1), zeros), normal(rng, rows)
        scale = None
        if int8:
            matrix, scale = whole(rng, rows, 30, zeros), normal(rng, rows) * 1e-3
        weights = matrix if scale is None else matrix * scale[:, None]
        with kernels.linear(
            matrix, bias, scale, block=(2, 1), gated=epilogue == "gate"
        ) as layer:
            for frames in (5, 16, 45):
                x = whole_frames(rng, frames, 30) if int8 else normal(rng, frames, 30)
                y = normal(rng, frames, layer.outputs)
                expected = reference(epilogue, product(x, weights, bias), y, 0.5)
                close(layer.run(x, epilogue, 0.5, y=y), expected, 5)


def test_what_is_not_finite_goes_through(kernels, rng):
    """Where a weight multiplies it; other frames are as they were."""
    for block, zeros in ((None, 0.0), ((8, 1), 0.7)):
        matrix = blockwise(rng, (24, 20), (8, 1), zeros)
        x = normal(rng, 40, 20)
        with kernels.linear(matrix, block=block) as layer:
            clean = layer.run(x)
            for number in (np.nan, np.inf, -np.inf):
                x[9, 3] = number
                y = layer.run(x)
                met = matrix[:, 3] != 0
                assert not np.isfinite(y[9, met]).any()
                if np.isnan(number):
                    assert np.isnan(y[9, met]).all()
                others = np.arange(40) != 9
                assert (y[others] == clean[others]).all()
                assert (y[9, ~met] == clean[9, ~met]).all()


# ---- int8 ----------------------------------------------------------------------------


def whole(rng, rows, columns, zeros=0.0):
    matrix = rng.integers(-127, 128, (rows, columns))
    return (matrix * (rng.random((rows, columns)) >= zeros)).astype(np.int8)


def whole_frames(rng, frames, inputs):
    """Frames that quantise to themselves: whole numbers up to 127."""
    x = rng.integers(-127, 128, (frames, inputs)).astype(np.float32)
    x[:, rng.integers(inputs)] = 127
    return x


@pytest.mark.parametrize("block", (*BLOCKS, None))
@pytest.mark.parametrize("zeros", (0.0, 0.6, 1.0))
def test_int8_products_are_exact(kernels, rng, block, zeros):
    for shape in ((16, 12), (37, 29), (8, 1), (5, 66), (9, 130)):
        matrix = whole(rng, *shape)
        matrix *= (blockwise(rng, shape, block or (1, 1), zeros) != 0).astype(np.int8)
        scale, bias = normal(rng, shape[0]), normal(rng, shape[0])
        with kernels.linear(matrix, bias, scale, block) as layer:
            for frames in (1, 8, 13, 32, 47):
                x = whole_frames(rng, frames, shape[1])
                expected = product(x, matrix) * scale + bias
                np.testing.assert_allclose(layer.run(x), expected, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("sign", (1, -1))
def test_int8_sums_do_not_saturate(kernels, sign):
    matrix = np.full((16, 1024), 127 * sign, np.int8)
    x = np.full((9, 1024), 3.5, np.float32)
    for block in (None, (8, 1)):
        with kernels.linear(
            matrix, scale=np.ones(16, np.float32), block=block
        ) as layer:
            for x_sign in (1, -1):
                expected = np.full((9, 16), 1024 * 127 * 3.5 * sign * x_sign)
                np.testing.assert_allclose(layer.run(x * x_sign), expected, rtol=1e-6)


def test_int8_activations_are_quantised_by_frame(kernels, rng):
    """No output is farther off than half a step of every input allows."""
    matrix, scale = whole(rng, 24, 50), np.abs(normal(rng, 24))
    x = normal(rng, 37, 50) * 10.0 ** rng.integers(-4, 5, (37, 1)).astype(np.float32)
    with kernels.linear(matrix, scale=scale) as layer:
        off = np.abs(layer.run(x) - product(x, matrix * scale[:, None]))
    step = np.abs(x).max(axis=1, keepdims=True) / 127
    bound = step / 2 * np.abs(matrix.astype(float)).sum(axis=1) * scale
    assert (off <= bound * 1.001).all()
    assert (off > bound * 1e-4).any()


def test_int8_frames_of_zeros_and_of_what_is_not_finite(kernels, rng):
    matrix, bias = whole(rng, 16, 20), normal(rng, 16)
    x = normal(rng, 40, 20)
    for block in (None, (8, 1)):
        with kernels.linear(matrix, bias, np.ones(16, np.float32), block) as layer:
            clean = layer.run(x)
            broken = x.copy()
            broken[3], broken[7, 5], broken[12, 0], broken[33, 19] = (
                0, np.nan, np.inf, -np.inf,
            )  # fmt: skip
            y = layer.run(broken)
            assert (y[3] == bias).all()
            assert np.isnan(y[[7, 12, 33]]).all()
            others = np.setdiff1d(np.arange(40), (3, 7, 12, 33))
            assert (y[others] == clean[others]).all()


# ---- threads and memory --------------------------------------------------------------


@pytest.mark.parametrize("frames", (4, 33, 250))
@pytest.mark.parametrize("int8", (False, True))
def test_threads_change_nothing(kernels, rng, frames, int8):
    matrix = whole(rng, 88, 40, 0.5) if int8 else normal(rng, 88, 40)
    scale = np.ones(88, np.float32) if int8 else None
    x = normal(rng, frames, 40)
    results = []
    for threads in (1, 2, 5):
        with kernels.linear(matrix, scale=scale, threads=threads) as layer:
            results.append(layer.run(x))
    assert (results[0] == results[1]).all() and (results[0] == results[2]).all()


def test_inputs_need_no_alignment(kernels, rng):
    matrix = normal(rng, 24, 17)
    room = np.empty(4 * 9 * 17 + 1, np.uint8)
    x = room[1:].view(np.float32).reshape(9, 17)
    x[:] = normal(rng, 9, 17)
    with kernels.linear(matrix) as layer:
        close(layer.run(x), product(x, matrix), 4)


def test_zeros_take_no_memory(library, rng):
    with library.linear(normal(rng, 256, 256)) as layer:
        dense = library.library.omnisparse_linear_bytes(layer.handle)
    matrix = blockwise(rng, (256, 256), (8, 1), 0.9)
    with library.linear(matrix, block=(8, 1)) as layer:
        sparse = library.library.omnisparse_linear_bytes(layer.handle)
    assert sparse < 0.15 * dense


def test_an_unknown_instruction_set_is_refused(library):
    assert not library.force("sse9")
    assert library.isas[-1] == "plain"


def test_blocks_of_the_helper_are_those_of_the_matrix(rng):
    matrix = blockwise(rng, (7, 5), (3, 2), 0.5)
    values, columns, begins = split_blocks(matrix, 3, 2)
    back = np.zeros((9, 6), np.float32)
    for i in range(3):
        for k in range(begins[i], begins[i + 1]):
            j = 2 * columns[k]
            back[3 * i : 3 * i + 3, j : j + 2] = values[k].reshape(3, 2)
    assert (back[:7, :5] == matrix).all()
