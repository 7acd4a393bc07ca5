"""Recipes: the YAML and the one-line form, what is refused, and running one step after another."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from paredown import changes, recipe, yamlform
from paredown.editing import replay
from paredown.errors import ArtefactError, InputError, NotApplicable, RecipeError
from paredown.recipe import Lower, Recipe, Step, Target
from paredown.technique import Decisions, Edit
from paredown.workload import Workload

TEXT = """\
schema: 1
paredown: 0.1.0
target: {ref: net.py, sha256: abc}
steps:
- technique: fold-norm
  sites: ['*']
- technique: static-int8
  settings: {percentile: 99.9}
  sites: [features.*]
  except: ['head:*']
  overrides:
    features.3: {percentile: 100.0}
lower: {backend: openvino, threads: 2}
seed: 3
"""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()
        )
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


@pytest.fixture
def workload():
    torch.manual_seed(0)
    model = Net().eval()
    model.features[1].running_mean.uniform_(-1, 1)
    model.features[1].running_var.uniform_(0.5, 2)
    data = [torch.randn(2, 3, 10, 10) for _ in range(4)]
    return Workload(model, (data[0],), calibration=data, name="net")


# ---------------------------------------------------------------- forms


def test_the_yaml_form_is_read_and_written_back_the_same():
    r = recipe.read(TEXT)
    assert r.target == Target(ref="net.py", sha256="abc")
    assert r.steps[1].except_ == ["head:*"]
    assert r.steps[1].overrides == {"features.3": {"percentile": 100.0}}
    assert (r.lower, r.seed) == (Lower(backend="openvino", threads=2), 3)
    assert recipe.dumps(r) == TEXT


def test_a_recipe_goes_to_disk_and_back(tmp_path):
    r = recipe.read(TEXT)
    recipe.dump(r, tmp_path / "recipe.yaml")
    assert recipe.load(tmp_path / "recipe.yaml") == r
    assert recipe.load(tmp_path) == r
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("steps: [", "not YAML"),
        ("- a", "mapping"),
        ("schema: 2", "unknown recipe schema 2: upgrade"),
        ("schema: one", "unknown recipe schema 'one'"),
        ("paredown: 99.0.0", "newer than this"),
        ("paredown: yesterday", "not a version"),
        ("colour: red", "unknown key 'colour'"),
        ("steps: [{technique: fold-norm, where: x}]", r"unknown key 'steps\.0\.where'"),
        ("steps: [{settings: {}}]", r"steps\.0\.technique"),
        ("steps: [{technique: shrink-ray}]", "unknown technique 'shrink-ray'"),
        ("steps: [{technique: static-int9}]", "did you mean static-int8"),
        ("steps: [{technique: static-int8, settings: {foo: 1}}]", "no setting 'foo'"),
        ("steps: [{technique: static-int8, settings: {percentile: much}}]", "is a number"),
        ("steps: [{technique: static-int8, overrides: {a: {b: 1}}}]", "no setting 'b'"),
        ("lower: {threads: 0}", "threads"),
        ("lower: {speed: 9}", "unknown key"),
        ("seed: soon", "seed"),
    ],
)
def test_what_a_recipe_may_not_hold(text, says):
    with pytest.raises(RecipeError, match=says) as e:
        recipe.read(text)
    assert "\n" not in str(e.value)


def test_a_missing_or_binary_file_is_one_line(tmp_path):
    with pytest.raises(RecipeError, match="no recipe at"):
        recipe.load(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="cannot read"):
        recipe.load(tmp_path / "bytes.yaml")


def test_the_inline_form():
    r = recipe.parse_inline("fold-norm; static-int8:percentile=99.9@blocks.*,stem!head:*")
    assert r.steps == [
        Step(technique="fold-norm"),
        Step(
            technique="static-int8",
            settings={"percentile": 99.9},
            sites=["blocks.*", "stem"],
            except_=["head:*"],
        ),
    ]
    assert recipe.parse_inline("fold-norm + bf16") == recipe.parse_inline("fold-norm;bf16")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "malformed step"),
        ("Fold Norm", "malformed step"),
        ("static-int8:percentile", "write key=value"),
        ("static-int8:percentile=1,percentile=2", "twice"),
        ("static-int8:percentile=[", "cannot read the value"),
        ("nothing-like-it", "unknown technique"),
        ("static-int8:foo=1", "no setting 'foo'"),
    ],
)
def test_a_malformed_inline_recipe_is_refused(text, says):
    with pytest.raises(RecipeError, match=says):
        recipe.parse_inline(text)


@given(
    sites=st.lists(st.sampled_from(["a", "b.*", "head:weight", "blocks.1.2:*", "a?"]), max_size=3),
    value=st.floats(99, 100),
)
def test_inline_settings_and_sites_survive(sites, value):
    text = f"static-int8:percentile={value!r}" + ("@" + ",".join(sites) if sites else "")
    step = recipe.parse_inline(text).steps[0]
    assert step.settings == {"percentile": value}
    assert step.sites == (sites or ["*"])


@pytest.mark.parametrize("text", ["2e-3", "2E-3", "2.e-3", "2.0e-3", ".2e-2", "0.002", "+2e-3"])
def test_a_setting_with_an_exponent_is_a_number(text):
    r = recipe.parse_inline(f"recover:lr={text}")
    assert r.steps[0].settings == {"lr": 0.002}
    written = f"schema: 1\nsteps:\n- technique: recover\n  settings: {{lr: {text}}}\n"
    assert recipe.read(written).steps == r.steps


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_and_texts_like_numbers_survive_yaml(value):
    for v in (value, repr(value), f"{value:e}", f"{value:.0e}"):
        again = yamlform.load(yamlform.dump({"v": v}))["v"]
        assert again == v
        assert type(again) is type(v)


# ---------------------------------------------------------------- running


def test_steps_run_in_stage_order_and_the_caller_keeps_its_model(workload):
    before = {k: v.clone() for k, v in workload.model.state_dict().items()}
    done = recipe.run(recipe.parse_inline("static-int8; fold-norm"), workload)
    assert [c.technique for c in done.changes] == ["fold-norm", "static-int8"]
    assert [s.technique for s in done.recipe.steps] == ["fold-norm", "static-int8"]
    assert done.workload.model is not workload.model
    assert done.workload.original is workload.model
    assert list(before) == list(workload.model.state_dict())
    for k, v in workload.model.state_dict().items():
        assert torch.equal(before[k], v)
    assert isinstance(workload.model.features[1], nn.BatchNorm2d)


def test_folding_is_exact_and_int8_is_near(workload):
    x = workload.inputs[0]
    folded = recipe.run(recipe.parse_inline("fold-norm"), workload).workload
    assert torch.allclose(folded.model(x), workload.model(x), atol=1e-5)
    low = recipe.run(recipe.parse_inline("fold-norm; static-int8"), workload).workload
    error = (low.model(x) - workload.model(x)).norm() / workload.model(x).norm()
    assert 0 < error < 0.1


def test_an_unknown_site_is_refused_and_named(workload):
    with pytest.raises(RecipeError, match=r"no site matches 'nowhere\.\*'"):
        recipe.run(recipe.parse_inline("static-int8@nowhere.*"), workload)


def test_a_step_with_nowhere_to_act_says_so(workload):
    bare = Workload(nn.Sequential(nn.ReLU()), (torch.zeros(1, 3),))
    with pytest.raises(NotApplicable, match="fold-norm has no site"):
        recipe.run(recipe.parse_inline("fold-norm"), bare)


def test_empty_calibration_data_is_refused(workload):
    workload.calibration = []
    with pytest.raises(InputError, match="calibration"):
        recipe.run(recipe.parse_inline("static-int8"), workload)


def test_progress_names_each_step(workload):
    said: list[str] = []
    recipe.run(recipe.parse_inline("fold-norm; bf16"), workload, progress=said.append)
    assert said == ["fold-norm (1 of 2)", "bf16 (2 of 2)"]


def test_a_run_gives_the_callers_random_state_back(workload):
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    recipe.run(recipe.parse_inline("fold-norm; static-int8"), workload)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])


def test_seeding_depends_on_the_recipes_seed_and_the_step():
    def draw(seed, step):
        with recipe.seeded(seed, step):
            return torch.rand(1).item(), random.random(), np.random.rand()

    assert draw(0, "a") == draw(0, "a")
    assert len({draw(0, "a"), draw(1, "a"), draw(0, "b")}) == 3


# ---------------------------------------------------------------- change records


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def test_recorded_decisions_replay_to_bit_equal_weights_without_data(workload, tmp_path):
    done = recipe.run(recipe.parse_inline("fold-norm; static-int8"), workload)
    changes.save_changes(tmp_path, done.changes)
    records = changes.load_changes(tmp_path)
    assert [r.technique for r in records] == ["fold-norm", "static-int8"]
    blind = Workload(workload.model, workload.inputs, calibration=None)
    again = recipe.run(done.recipe, blind, decisions=[r.decisions for r in records])
    a, b = state(done.workload.model), state(again.workload.model)
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name
    assert again.changes[1].edits == done.changes[1].edits


def test_recorded_edits_rebuild_the_structure(workload, tmp_path):
    done = recipe.run(recipe.parse_inline("fold-norm; static-int8"), workload)
    changes.save_changes(tmp_path, done.changes)
    copy = workload.copy().model
    for r in changes.load_changes(tmp_path):
        replay(copy, r.edits)
    shapes = {k: (v.shape, v.dtype) for k, v in state(done.workload.model).items()}
    assert {k: (v.shape, v.dtype) for k, v in state(copy).items()} == shapes


def test_a_record_keeps_every_field(tmp_path):
    r = changes.Record(
        "x",
        (
            Edit("swap", "a", cls="Identity"),
            Edit("tensor", "a", "w", shape=(2, 3), dtype="int8"),
            Edit("tensor", "a", "b"),
            Edit("attr", "a", "n", value=[1, 2]),
            Edit("attr", "a", "flag", value=False),
        ),
        Decisions({"k": [1, 2.5, None]}, {"t": torch.arange(3)}),
        ("bytes",),
        {"a:weight": ("weight_dtype",)},
        {"a": ("a.0", "a.1")},
        ("a note",),
    )
    changes.save_changes(tmp_path, [r, r])
    first, second = changes.load_changes(tmp_path)
    assert first.edits == r.edits
    assert torch.equal(first.decisions.tensors["t"], torch.arange(3))
    assert second.decisions.values == {"k": [1, 2.5, None]}
    assert (first.renames, first.touched, first.notes) == (r.renames, r.touched, r.notes)


@pytest.mark.parametrize(
    "damage",
    ["{", '{"schema": 1}', '{"schema": 9}', "[]"],
)
def test_a_damaged_record_is_refused(damage, tmp_path):
    (tmp_path / "00-x.json").write_text(damage)
    with pytest.raises(ArtefactError):
        changes.load_changes(tmp_path)


def test_an_edit_from_outside_the_closed_list_is_refused(workload, tmp_path):
    done = recipe.run(recipe.parse_inline("fold-norm"), workload)
    path = changes.save_changes(tmp_path, done.changes)[-1]
    path.write_text(path.read_text().replace('"op": "swap"', '"op": "exec"'))
    with pytest.raises(ArtefactError, match="does not know"):
        changes.load_changes(tmp_path)


def test_decisions_must_match_the_steps(workload):
    with pytest.raises(RecipeError, match="0 recorded decisions for 1"):
        recipe.run(Recipe(steps=[Step(technique="fold-norm")]), workload, decisions=[])
