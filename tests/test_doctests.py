"""Test the examples in the docstrings of the public API."""

import ast
import doctest
import inspect
import sys
import types

import pytest

import jaxattn as ja

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

# Public functions and classes whose docstring has no example yet. Should become empty.
WITHOUT_EXAMPLE: set[str] = set(
    """
    jaxattn.Benchmark jaxattn.Rule jaxattn.attention jaxattn.attention_flow
    jaxattn.attention_rollout jaxattn.contextual_decomposition jaxattn.deconvnet
    jaxattn.deep_lift jaxattn.deep_taylor jaxattn.fit_patterns jaxattn.grad_cam jaxattn.gradient
    jaxattn.gradient_x_attention jaxattn.guided_backprop jaxattn.input_x_gradient
    jaxattn.integrated_gradients jaxattn.jacobian jaxattn.layer_conductance jaxattn.learned_mask
    jaxattn.lrp jaxattn.metrics.Curve jaxattn.metrics.completeness jaxattn.metrics.deletion
    jaxattn.metrics.insertion jaxattn.models.Caption jaxattn.models.CaptionLoss
    jaxattn.models.Captioner jaxattn.models.CharacterClassifier jaxattn.models.GlimpseLoss
    jaxattn.models.Glimpses jaxattn.models.Reading jaxattn.models.RecurrentAttention
    jaxattn.models.SequenceClassifier jaxattn.models.SignalClassifier jaxattn.models.Translator
    jaxattn.models.beam_captions jaxattn.models.glimpse_loss jaxattn.models.greedy_caption
    jaxattn.models.hard_caption_loss jaxattn.models.moving_baseline
    jaxattn.models.soft_caption_loss jaxattn.nn.AdditiveAttention jaxattn.nn.Attended
    jaxattn.nn.AttentionDecoder jaxattn.nn.CrossAttention jaxattn.nn.Decoded
    jaxattn.nn.DecoderState jaxattn.nn.DecoderWeights jaxattn.nn.FeedForwardAttention
    jaxattn.nn.Fixation jaxattn.nn.GRU jaxattn.nn.GRUWeights jaxattn.nn.GlimpseNetwork
    jaxattn.nn.GlimpseSensor jaxattn.nn.HardSpatialAttention jaxattn.nn.LSTM
    jaxattn.nn.LSTMState jaxattn.nn.LSTMWeights jaxattn.nn.Located jaxattn.nn.LocationNetwork
    jaxattn.nn.MultiHeadAttention jaxattn.nn.MultiplicativeAttention jaxattn.nn.Padding
    jaxattn.nn.RNN jaxattn.nn.RNNWeights jaxattn.nn.Recurrence jaxattn.nn.Recurrent
    jaxattn.nn.ScaledDotProductAttention jaxattn.nn.SeqSelfAttention
    jaxattn.nn.SeqWeightedAttention jaxattn.nn.SoftSpatialAttention jaxattn.nn.SpatialAttention
    jaxattn.nn.SpatialWeights jaxattn.nn.attention_decoder_step jaxattn.nn.attention_regularizer
    jaxattn.nn.choose_position jaxattn.nn.doubly_stochastic_penalty jaxattn.nn.from_keras
    jaxattn.nn.from_torch jaxattn.nn.glimpse jaxattn.nn.glimpse_boxes jaxattn.nn.gru_step
    jaxattn.nn.lstm_step jaxattn.nn.masked_softmax jaxattn.nn.read_position jaxattn.nn.rnn_step
    jaxattn.nn.spatial_keys jaxattn.nn.spatial_scores jaxattn.nn.valid_steps jaxattn.occlusion
    jaxattn.pattern_attribution jaxattn.pattern_net jaxattn.plot.Text jaxattn.plot.attention
    jaxattn.plot.attention_heads jaxattn.plot.captions jaxattn.plot.comparison
    jaxattn.plot.comparison_grid jaxattn.plot.curve jaxattn.plot.features_0d
    jaxattn.plot.features_1d jaxattn.plot.features_2d jaxattn.plot.features_hist
    jaxattn.plot.glimpses jaxattn.plot.image jaxattn.plot.images jaxattn.plot.jacobian
    jaxattn.plot.score_over_time jaxattn.plot.series jaxattn.plot.temporal_jacobian
    jaxattn.plot.text jaxattn.plot.window jaxattn.saliency jaxattn.smooth_grad jaxattn.tag
    jaxattn.temporal_output_score jaxattn.value_zeroing
    """.split()
)


def public_objects():
    """Yield the name and the object of every public function and class."""
    packages = {"jaxattn": ja} | {
        f"jaxattn.{name}": getattr(ja, name) for name in ("metrics", "models", "nn", "plot")
    }
    for prefix, package in packages.items():
        for name in package.__all__:
            value = getattr(package, name)
            if not isinstance(value, types.ModuleType) and callable(value):
                yield f"{prefix}.{name}", value


PUBLIC = dict(public_objects())


def examples(name):
    """Return the examples of a docstring as doctests."""
    parser = doctest.DocTestParser()
    return parser.get_doctest(inspect.getdoc(PUBLIC[name]) or "", {}, name, None, 0)


WITH_EXAMPLE = [name for name in PUBLIC if examples(name).examples]


@pytest.mark.parametrize("name", WITH_EXAMPLE)
def test_docstring_example_runs(name):
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    runner.run(examples(name), out=report.append)
    assert not runner.failures, "".join(report)


def test_every_public_function_has_an_example():
    missing = PUBLIC.keys() - WITH_EXAMPLE
    assert sorted(missing - WITHOUT_EXAMPLE) == []
    assert sorted(WITHOUT_EXAMPLE - missing) == [], "these have an example"


@pytest.mark.parametrize("package", [ja, ja.metrics, ja.models, ja.nn, ja.plot])
def test_public_names_are_in_all(package):
    assert all(getattr(package, name).__doc__ for name in package.__all__ if name != "END")
    source = ast.parse(inspect.getsource(sys.modules[package.__name__]))
    imported = {
        alias.asname or alias.name
        for node in source.body
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("jaxattn")
        for alias in node.names
    }
    assert imported <= set(package.__all__)


def test_dir_of_the_package_lists_public_names_only():
    assert set(dir(ja)) == {*ja.__all__, "__version__"}
    assert "plot" in dir(ja)
