"""Check that the tests detect errors in the library (mutation testing).

    python tests/mutants.py                        # all mutants
    python tests/mutants.py --only 7               # the mutant with that number; may be repeated
    python tests/mutants.py --tests '-m "" -k lrp' # other tests than the quick tier
    python tests/mutants.py --check                # only locate the text of each mutant

Each mutant replaces one fragment of the source in a temporary copy of the repository. The test
files expected to fail run first; all selected tests run only if these pass.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
QUICK = ["-m", "not slow"]


class Mutant(NamedTuple):
    """A replacement of a unique source fragment, and the test files expected to fail."""

    text: str
    replacement: str
    tests: str


MUTANTS = [
    # Methods.
    Mutant("jnp.abs, result.gradient)", "jnp.negative, result.gradient)", "gradients"),
    Mutant("leaf.astype(g.dtype) * g, x,", "leaf.astype(g.dtype) + g, x,", "gradients"),
    Mutant("sample(key)), keys, size, num_samples)", "sample(key)), keys, size, num_samples + 1)",
           "gradients"),
    Mutant("keys, size, num_samples - 1)", "keys, size, num_samples)", "gradients"),
    Mutant("(np.arange(num_steps) + 0.5) / num_steps", "np.arange(num_steps) / num_steps",
           "integrated layers"),
    Mutant("return (points + 1) / 2, masses / 2", "return (points + 1) / 2, masses", "integrated"),
    Mutant("total = jnp.stack([part.sum().astype(score.dtype) for part in parts]).sum()",
           "total = -jnp.stack([part.sum().astype(score.dtype) for part in parts]).sum()",
           "integrated"),
    Mutant("[leaf - first for leaf, first in zip(floating, starts, strict=True)]",
           "[leaf + first for leaf, first in zip(floating, starts, strict=True)]", "integrated"),
    Mutant("windows.mean(scores[0] - scores[1:])", "windows.mean(scores[1:] - scores[0])",
           "occlusion"),
    Mutant("windows.mean(none - changed)", "windows.mean(changed - none)", "reuse_occlusion"),
    Mutant("covers = (offsets >= 0) & (offsets < width)",
           "covers = (offsets >= 0) & (offsets <= width)", "occlusion"),
    Mutant("if step > width:", "if step > width + 1:", "occlusion errors"),
    Mutant("jax.tree.map(jnp.multiply, located.weights, slope)",
           "jax.tree.map(jnp.add, located.weights, slope)", "attention"),
    Mutant("g * s.astype(g.dtype), slope, speed)", "g + s.astype(g.dtype), slope, speed)",
           "layers"),
    Mutant('slice(None, t + 1) if direction == "forward"',
           'slice(None, t) if direction == "forward"',
           "temporal"),
    Mutant("shift = -begin if self.padding", "shift = begin if self.padding", "temporal"),
    Mutant("rectified(fn, gated=True)", "rectified(fn, gated=False)", "backprop"),
    Mutant("return (value if deletes else -value) + penalty(masks)",
           "return value + penalty(masks)", "masks"),
    Mutant("sum(l1 * jnp.abs(values).sum() for values in selected)",
           "sum(l1 * jnp.abs(values).sum() for values in masks)", "masks"),
    Mutant("runs[:, None] >> np.arange(a, b)", "runs[:, None] >> np.arange(b - a)",
           "coalition_tree"),
    Mutant("[carry[parent] for carry in before]", "[carry[0] for carry in before]",
           "coalition_tree"),
    Mutant("return (reached[start] & ~reached[end])", "return (reached[start] | ~reached[end])",
           "attention_edges attention"),
    # Propagation through jaxprs.
    Mutant("s = quotient(relevance, stabilised(z, epsilon))", "s = quotient(relevance, z)",
           "relevance gates nn_attention"),
    Mutant("* (relevance - weights * whole)", "* (relevance + weights * whole)",
           "relevance_recurrent gates nn_attention"),
    Mutant("kept = jnp.where(visit.read(atom) == 0, 0, relevance)", "kept = relevance",
           "relevance deep_lift"),
    Mutant('return "second" if first.is_gate else "first"',
           'return "first" if first.is_gate else "second"',
           "relevance_recurrent gates"),
    Mutant("means * (relative - quotient(total(means * relative), total(means)))",
           "means * relative", "deep_lift_stable"),
    Mutant("at_input = (y >= y0) if step.name in _MAXIMA",
           "at_input = (y <= y0) if step.name in _MAXIMA", "deep_lift"),
    Mutant('list(step.eqn.params["permutation"]).index(rows.axis)',
           'step.eqn.params["permutation"][rows.axis]', "reuse reuse_primitives"),
    Mutant("[cut.shifted(-start)],\n        [cut],",
           "[cut.shifted(-start).within(0, cut.size - 1)],\n        [cut],",
           "reuse reuse_primitives"),
    Mutant("return _size(eqn.invars[2])", "return _size(eqn.invars[0])", "flops"),
    Mutant('return eqn.params["length"]', "return 1", "flops reuse"),
    # Calls: batches, devices, caches, checks.
    Mutant("masks = parts[1] & (rows < count)", "masks = parts[1] & (rows <= count)",
           "batch integrated methods_common"),
    Mutant("jnp.minimum(members, count - 1)", "jnp.minimum(members, count - 2)",
           "engine_mesh batch methods_common"),
    Mutant("str(data.dtype), np.shape(array), hashlib.sha256(data.tobytes()).digest()",
           "str(data.dtype), np.shape(array), 0", "engine_cache"),
    Mutant("outside = (target < 0) | (target >=", "outside = (target < 0) | (target >", "errors"),
    Mutant("return max(1, in_flight // 2)",
           "return max(1, in_flight)", "engine_memory engine_plan"),
    # Metrics and networks.
    Mutant("before, after = (changed, x) if insert else (x, changed)",
           "before, after = (x, changed) if insert else (changed, x)", "metrics"),
    Mutant("jnp.argsort(values, descending=True, stable=True)", "jnp.argsort(values, stable=True)",
           "metrics"),
    Mutant("precision=share(true - true_below, values.size - below)",
           "precision=share(true - true_up_to, values.size - below)", "metrics_truth"),
    Mutant("(count, features) if keep else (0, count)", "(0, count)", "metrics_perturbation"),
    Mutant("total * unknown - _neighbours(", "total * unknown + _neighbours(",
           "metrics_perturbation"),
    Mutant("sums = scale * sums", "sums = sums / scale", "metrics_effects"),
    Mutant("return -np.abs(values)", "return np.abs(values)", "metrics_table"),
    Mutant("drawn = [layer] if order", "drawn = layers if order", "metrics_robustness"),
    Mutant("past = jnp.arange(keys)[None] <= jnp.arange(queries)[:, None]",
           "past = jnp.arange(keys)[None] < jnp.arange(queries)[:, None]", "nn_self_attention"),
    Mutant("return (ahead >= -lowest) & (ahead < width - lowest)",
           "return (ahead >= -lowest) & (ahead <= width - lowest)", "nn_self_attention"),
    Mutant("scores = jnp.tanh((s @ w.W_a + w.b_a)[None] + projected) @ w.V_a",
           "scores = jnp.tanh((s @ w.W_a)[None] + projected) @ w.V_a", "nn_decoder"),
]  # fmt: skip


def place(mutant: Mutant, root: Path) -> Path:
    """Return the library file that contains the text of a mutant."""
    found = [
        path
        for path in sorted((root / "jaxattn").rglob("*.py"))
        for _ in range(path.read_text(encoding="utf-8").count(mutant.text))
    ]
    if len(found) != 1:
        raise ValueError(f"{mutant.text!r} occurs {len(found)} times in the library, expected 1")
    return found[0]


def fails(root: Path, arguments: list[str]) -> str:
    """Run pytest and return its first failure line, or an empty string if all tests pass."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *arguments]
    env = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        command, cwd=root, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode == 0:
        return ""
    if done.returncode in (3, 4, 5):  # internal error, wrong usage, no tests
        raise RuntimeError(f"{shlex.join(command)}:\n{done.stdout}{done.stderr}")
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return (lines or [f"exit status {done.returncode}"])[0]


def check(root: Path, numbers: Sequence[int]) -> int:
    """Print how many mutants can be placed, and return 1 if a text or a test file is missing."""
    problems = []
    for number in numbers:
        mutant = MUTANTS[number - 1]
        try:
            place(mutant, root)
            for name in mutant.tests.split():
                if not (root / f"tests/test_{name}.py").exists():
                    raise ValueError(f"tests/test_{name}.py is missing")
        except ValueError as error:
            problems.append(f"{number:3} {error}")
    print(*problems, f"{len(numbers) - len(problems)} of {len(numbers)} texts found", sep="\n")
    return bool(problems)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=int, action="append", help="number of a mutant")
    parser.add_argument("--tests", help="arguments for pytest that select the tests")
    parser.add_argument("--source", type=Path, default=ROOT, help="repository with other tests")
    parser.add_argument("--first", action="store_true", help="run only the files of each mutant")
    parser.add_argument("--check", action="store_true", help="run no tests")
    options = parser.parse_args()
    selected = QUICK if options.tests is None else shlex.split(options.tests)
    numbers = options.only or range(1, len(MUTANTS) + 1)
    if options.check:
        return check(options.source, numbers)
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "tree"
        ignored = shutil.ignore_patterns(".git", ".venv*", ".*_cache", "__pycache__", "out")
        shutil.copytree(options.source, root, ignore=ignored)
        for number in numbers:
            mutant, start = MUTANTS[number - 1], time.perf_counter()
            path = place(mutant, root)
            original = path.read_text(encoding="utf-8")
            path.write_text(original.replace(mutant.text, mutant.replacement), encoding="utf-8")
            try:
                files = [f"tests/test_{name}.py" for name in mutant.tests.split()]
                caught = fails(root, [*selected, *filter(lambda f: (root / f).exists(), files)])
                if not caught and not options.first:
                    caught = fails(root, selected)
            finally:
                path.write_text(original, encoding="utf-8")
            if not caught:
                survivors.append(number)
            seconds = time.perf_counter() - start
            where = path.relative_to(root)
            print(f"{number:3} {'caught' if caught else 'SURVIVED':8} {seconds:5.0f} s  {where}: "
                  f"{' '.join(mutant.replacement.split())}  {caught}", flush=True)  # fmt: skip
    print(f"{len(numbers) - len(survivors)} of {len(numbers)} caught; survivors: {survivors}")
    return bool(survivors)


if __name__ == "__main__":
    raise SystemExit(main())
