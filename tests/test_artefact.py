"""Artefacts: saved whole, read back to the same outputs on every backend, refused when touched."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import paredown
from paredown import artefact, manifest, recipe, runtime, targets
from paredown.errors import ArtefactError, InputError
from paredown.manifest import is_pickle
from paredown.workload import TargetRef, Workload

SOURCE = """
import torch
from torch import nn
from paredown import Workload

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x, scale=None):
        y = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        y = self.head(y)
        return {"logits": y if scale is None else y * scale}

def target():
    torch.manual_seed(0)
    data = [torch.randn(2, 3, 10, 10) for _ in range(4)]
    return Workload(Net(), (data[0],), calibration=data)
"""

CASES = {
    "eager": "fold-norm; weight-only:bits=8",
    "inductor": "fold-norm; bf16",
    "onnxruntime": "fold-norm; static-int8",
    "openvino": "fold-norm; static-int8",
}
BACKENDS = [pytest.param(b, marks=pytest.mark.slow) if b == "inductor" else b for b in CASES]


def make(backend: str, folder: Path, home: Path):
    """An artefact for one backend; returns the executable it was saved from and the source."""
    reason = runtime.backend(backend).available()
    if reason is not None:
        pytest.skip(reason)
    home.mkdir(exist_ok=True)
    (home / "net.py").write_text(SOURCE)
    source = targets.resolve(str(home / "net.py"))
    done = recipe.run(recipe.parse_inline(CASES[backend]), source)
    executable = runtime.backend(backend).lower(done.workload, threads=1)
    artefact.save(
        folder,
        workload=done.workload,
        executable=executable,
        recipe=done.recipe,
        changes=done.changes,
    )
    return executable, source


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An OpenVINO artefact, or an eager one where OpenVINO is missing; copied by each test."""
    home = tmp_path_factory.mktemp("made")
    backend = "openvino" if runtime.backend("openvino").available() is None else "eager"
    make(backend, home / "art", home / "src")
    return home / "art"


@pytest.fixture
def folder(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "art"))


def inside(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


# ---------------------------------------------------------------- there and back


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_reads_back_to_the_same_outputs(backend, tmp_path):
    executable, source = make(backend, tmp_path / "art", tmp_path / "src")
    x = source.inputs[0]
    loaded = artefact.load(tmp_path / "art")
    assert (loaded.executable.backend, loaded.executable.threads) == (backend, 1)
    assert torch.equal(loaded(x)["logits"], executable(x)["logits"])
    # Any batch, through the original's signature and output type.
    five = torch.randn(5, 3, 10, 10)
    out = loaded(five)["logits"]
    assert out.shape == (5, 5)
    assert torch.allclose(out[:2], loaded(five[:2])["logits"], atol=1e-6)
    error = (out - source.model(five)["logits"]).norm() / source.model(five)["logits"].norm()
    assert error < 0.1
    assert torch.equal(loaded.workload.inputs[0], x)
    info = loaded.manifest
    assert [(i.shape, i.dtype) for i in info.inputs] == [([2, 3, 10, 10], "float32")]
    assert [(o.name, o.shape) for o in info.outputs] == [("logits", [2, 5])]
    assert info.source.sha256 == targets.resolve(str(tmp_path / "src/net.py")).source.sha256


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_compiled_artefacts_need_no_source(backend, tmp_path):
    executable, source = make(backend, tmp_path / "art", tmp_path / "src")
    want = executable(*source.inputs)["logits"]
    shutil.rmtree(tmp_path / "src")
    assert torch.equal(artefact.load(tmp_path / "art")(*source.inputs)["logits"], want)


def test_paredown_load_is_the_front_door(folder):
    assert paredown.load(folder)(torch.zeros(2, 3, 10, 10))["logits"].shape == (2, 5)


def test_a_folder_is_a_target_like_any_other(folder):
    assert targets.kind_of(str(folder)) == "artefact"
    w = targets.validate(targets.resolve(str(folder)))
    assert w.name == "net"
    assert w.call()["logits"].shape == (2, 5)


def test_the_recipe_in_the_folder_names_target_backend_and_threads(folder):
    r = recipe.load(folder)
    assert r.target.ref.endswith("net.py")
    assert (r.lower.backend, r.lower.threads) == (manifest.read(folder).backend, 1)


def test_size_counts_what_the_backend_needs(tmp_path):
    make("eager", tmp_path / "eager", tmp_path / "src")
    edits = sum(p.stat().st_size for p in (tmp_path / "eager/changes").glob("*.json"))
    ran = sum(p.stat().st_size for p in (tmp_path / "eager/run").iterdir())
    assert artefact.size_bytes(tmp_path / "eager") == ran + edits


def test_files_to_carry_along_travel_and_pickles_do_not(tmp_path):
    executable, source = make("eager", tmp_path / "a", tmp_path / "src")
    (tmp_path / "tokenizer.json").write_text("{}")
    carrying = replace(source, carry=(str(tmp_path / "tokenizer.json"),))
    given = {"executable": executable, "recipe": recipe.Recipe()}
    artefact.save(tmp_path / "b", workload=carrying, **given)
    assert (tmp_path / "b/carry/tokenizer.json").read_text() == "{}"
    (tmp_path / "state.bin").write_bytes(pickle.dumps({"a": Path("x")}))
    carrying = replace(source, carry=(str(tmp_path / "state.bin"),))
    with pytest.raises(InputError, match="is a pickle"):
        artefact.save(tmp_path / "c", workload=carrying, **given)
    assert not (tmp_path / "c").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "a", "b", "src", "state.bin", "tokenizer.json",
    ]  # fmt: skip


# ---------------------------------------------------------------- whole or not at all


class Broken:
    backend, threads, compile_s = "eager", 1, 0.0

    def save(self, folder: Path):
        (folder / "half").write_text("half")
        raise OSError(28, "No space left on device")


def test_a_save_that_fails_leaves_the_old_artefact_as_it_was(folder):
    before = {p: p.read_bytes() for p in inside(folder)}
    w = Workload(nn.Identity(), (torch.zeros(1),))
    with pytest.raises(InputError, match="no space left"):
        artefact.save(folder, workload=w, executable=Broken(), recipe=recipe.Recipe())
    assert {p: p.read_bytes() for p in inside(folder)} == before
    assert [p.name for p in folder.parent.iterdir()] == ["art"]


def test_saving_over_an_artefact_replaces_it_and_keeps_what_is_not_its_own(folder, tmp_path):
    (folder / "search.sqlite").write_text("trials")
    stale = next((folder / "run").iterdir()).name
    make("eager", folder, tmp_path / "src")
    assert manifest.check(folder).backend == "eager"
    assert not (folder / "run" / stale).exists()
    assert (folder / "search.sqlite").read_text() == "trials"


def test_publish_copies_into_a_folder_in_use(folder, tmp_path):
    out = tmp_path / "out"
    (out / "trials").mkdir(parents=True)
    (out / "trials" / "log.txt").write_text("x")
    artefact.publish(folder, out)
    artefact.publish(folder, out)
    assert manifest.check(out).digest == manifest.check(folder).digest
    assert (out / "trials" / "log.txt").exists()
    assert oct(out.stat().st_mode & 0o777) == oct(folder.stat().st_mode & 0o777)


def test_an_unwritable_place_is_one_line(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write") as e:
        make("eager", tmp_path / "file" / "art", tmp_path / "src")
    assert "\n" not in str(e.value)
    with pytest.raises(InputError, match="it is a file"):
        make("eager", tmp_path / "file", tmp_path / "src")


def test_sealed_reports_are_checked_too(folder):
    (folder / "result.json").write_text('{"verdict": "met"}')
    artefact.seal(folder)
    manifest.check(folder)
    (folder / "result.json").write_text('{"verdict": "met!"}')
    with pytest.raises(ArtefactError, match=r"result\.json"):
        manifest.check(folder)


# ---------------------------------------------------------------- refused, nothing run


def refused(folder: Path, says: str) -> None:
    for read in (artefact.check, artefact.load, lambda f: targets.resolve(str(f))):
        with pytest.raises(ArtefactError, match=says) as e:
            read(folder)
        assert "\n" not in str(e.value)


def test_any_flipped_byte_is_seen(made, tmp_path):
    for i, path in enumerate(inside(made)):
        folder = Path(shutil.copytree(made, tmp_path / str(i)))
        victim = folder / path.relative_to(made)
        data = bytearray(victim.read_bytes())
        data[len(data) // 2] ^= 1
        victim.write_bytes(data)
        with pytest.raises(ArtefactError):
            artefact.load(folder)


def test_any_missing_file_is_seen(made, tmp_path):
    for i, path in enumerate(inside(made)):
        folder = Path(shutil.copytree(made, tmp_path / str(i)))
        (folder / path.relative_to(made)).unlink()
        what = "no manifest" if path.name == "manifest.json" else "is missing"
        with pytest.raises(ArtefactError, match=what):
            artefact.load(folder)


def test_a_longer_file_is_seen(folder):
    with open(folder / "recipe.yaml", "a") as f:
        f.write("# more\n")
    refused(folder, r"recipe\.yaml has \d+ bytes")


def test_a_file_beside_the_listed_ones_is_refused(folder):
    (folder / "run" / "extra.txt").write_text("x")
    refused(folder, r"run/extra\.txt is not in the manifest")


def forge(folder: Path, change) -> None:
    """Change the manifest and sign it again, as an attacker would."""
    data = json.loads((folder / "manifest.json").read_text())
    change(data)
    manifest.Manifest.model_validate(data).write(folder)


@pytest.mark.parametrize("name", ["../outside.bin", "/etc/hostname", "run/../../outside.bin", ".."])
def test_a_path_that_leaves_the_folder_is_refused(folder, name):
    outside = folder.parent / "outside.bin"
    outside.write_bytes(b"data")
    entry = dict(
        zip(("name", "info"), manifest.describe(folder.parent, outside, "run"), strict=True)
    )

    def add(data):
        data["files"][name] = entry["info"].model_dump()

    forge(folder, add)
    refused(folder, "leaves the artefact's folder")


def test_a_link_out_of_the_folder_is_refused(folder):
    victim = next(p for p in inside(folder / "run"))
    moved = folder.parent / "moved"
    victim.rename(moved)
    victim.symlink_to(moved)
    refused(folder, "leaves the artefact's folder")


def test_a_linked_subfolder_is_refused(folder):
    (folder / "changes").rename(folder.parent / "changes")
    (folder / "changes").symlink_to(folder.parent / "changes")
    refused(folder, "leaves the artefact's folder")


class Boom:
    def __reduce__(self):
        return os.mkdir, ("pickle_was_run",)


def _torch_zip() -> bytes:
    out = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, out)
    return out.getvalue()


def _zip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        z.writestr("x/data.pkl", b"")
    return out.getvalue()


PICKLED = {
    "weights.pkl": b"",
    "weights.pt": b"",
    "a.bin": pickle.dumps(Boom()),
    "b.bin": pickle.dumps(Boom(), protocol=0),
    "c.json": pickle.dumps(Boom(), protocol=2) + b"trailing",
    "d.safetensors": _torch_zip(),
    "e.dat": _zip(),
}


@pytest.mark.parametrize("where", [".", "run", "carry", "elsewhere/deep"])
@pytest.mark.parametrize("name", PICKLED)
def test_a_pickle_anywhere_inside_is_refused_and_not_run(folder, name, where, monkeypatch):
    monkeypatch.chdir(folder.parent)
    path = folder / where / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(PICKLED[name])
    if where in ("run", "carry"):
        # Listed with its right hash: only what it is speaks against it.
        entry, info = manifest.describe(folder, path, "carry")
        forge(folder, lambda data: data["files"].update({entry: info.model_dump()}))
    refused(folder, "is a pickle")
    assert not Path("pickle_was_run").exists()


def test_a_pickle_in_place_of_the_tensors_is_refused(tmp_path):
    _, _ = make("eager", tmp_path / "art", tmp_path / "src")
    path = tmp_path / "art" / "run" / "tensors.safetensors"
    path.write_bytes(_torch_zip())
    entry, info = manifest.describe(tmp_path / "art", path, "run")
    forge(tmp_path / "art", lambda data: data["files"].update({entry: info.model_dump()}))
    refused(tmp_path / "art", "is a pickle")


def test_weights_and_text_are_not_taken_for_pickles(tmp_path):
    generator = torch.Generator().manual_seed(0)
    path = tmp_path / "x.bin"
    for _ in range(300):
        data = torch.randint(0, 256, (512,), generator=generator, dtype=torch.uint8)
        path.write_bytes(bytes(data.tolist()))
        assert not is_pickle(path)
    for opcode in range(256):
        path.write_bytes(bytes([opcode]) * 3 + b"\x00\x01\x02\x03" * 64)
        assert not is_pickle(path), opcode
    for text in ("", "N", "schema: 1\nparedown: 0.1.0\n", "(see the notes)\n.", "{}", "I1\n."):
        path.write_text(text)
        assert not is_pickle(path), text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "damaged"),
        ("[]", "damaged"),
        ("{", "damaged"),
        ('{"schema": 2}', "newer"),
        ('{"schema": 1}', "damaged"),
    ],
)
def test_a_damaged_manifest_is_refused(folder, text, says):
    (folder / "manifest.json").write_text(text)
    refused(folder, says)


def test_an_unknown_backend_is_refused(folder):
    forge(folder, lambda data: data.update(backend="tpu"))
    with pytest.raises(ArtefactError, match="unknown backend 'tpu'"):
        artefact.load(folder)


# ---------------------------------------------------------------- the source of an eager artefact


def test_an_eager_artefact_imports_only_the_users_unchanged_file(tmp_path):
    executable, source = make("eager", tmp_path / "art", tmp_path / "src")
    net = tmp_path / "src/net.py"
    net.write_text(SOURCE + "\n# edited\n")
    with pytest.raises(ArtefactError, match="another version"):
        artefact.load(tmp_path / "art")
    # Named by the user, it may be another version.
    named = artefact.load(tmp_path / "art", source=str(net))
    assert torch.equal(named(*source.inputs)["logits"], executable(*source.inputs)["logits"])
    net.unlink()
    with pytest.raises(ArtefactError, match="needs its source"):
        artefact.load(tmp_path / "art")
    given = artefact.load(tmp_path / "art", source=source)
    assert torch.equal(given(*source.inputs)["logits"], executable(*source.inputs)["logits"])


def test_a_file_of_the_folder_is_never_imported(tmp_path, monkeypatch):
    make("eager", tmp_path / "art", tmp_path / "src")
    trap = tmp_path / "art" / "net.py"
    trap.write_text("raise SystemExit('it was imported')")
    from paredown.files import sha256

    ref = {"ref": str(trap), "sha256": sha256(trap)}
    forge(tmp_path / "art", lambda data: data.update(source=ref))
    with pytest.raises(ArtefactError, match="a file of its own"):
        artefact.load(tmp_path / "art")


def test_another_network_as_source_is_refused(tmp_path):
    make("eager", tmp_path / "art", tmp_path / "src")
    other = Workload(nn.Sequential(nn.Linear(3, 3)), (torch.zeros(1, 3),))
    with pytest.raises(ArtefactError):
        artefact.load(tmp_path / "art", source=other)


def test_a_python_object_as_source_must_be_given_again(tmp_path):
    _, source = make("eager", tmp_path / "a", tmp_path / "src")
    anonymous = replace(source, source=None)
    executable = runtime.backend("eager").lower(anonymous, threads=1)
    artefact.save(tmp_path / "b", workload=anonymous, executable=executable, recipe=recipe.Recipe())
    with pytest.raises(ArtefactError, match="Python object"):
        artefact.load(tmp_path / "b")
    assert artefact.source_of(tmp_path / "b", source=source) is source
    assert artefact.load(tmp_path / "b", source=source).workload.source == TargetRef(
        str(tmp_path / "b")
    )
