"""Nothing that comes from outside is run, and nothing of it is written outside its folder."""

import ast
import io
import json
import os
import pickle
import re
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import solo_minent
from solo_minent.checkpoint import RESULTS_FILE, add_result
from solo_minent.cli import main
from solo_minent.config import to_yaml
from solo_minent.data.datasets import load_split
from solo_minent.data.folders import select_listed
from solo_minent.data.images import FileImages, decode
from solo_minent.errors import UserError
from solo_minent.evaluation.cache import features_file, read_features, write_features
from solo_minent.evaluation.detection_data import AnnotatedImage, coco_data, voc_data
from solo_minent.evaluation.detection_loader import _read_rgb
from solo_minent.prepare.archives import Job, unpack
from solo_minent.training.folder import LOCK_FILE

PACKAGE = Path(solo_minent.__file__).parent
ROOT = Path(__file__).parents[1]

# The product's own code, read as a tree: what could run or trust something from outside.

NEVER = {  # calls, by the name of what is imported
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.startfile",
    "subprocess.getoutput", "subprocess.getstatusoutput", "tempfile.mktemp", "runpy.run_path",
    "runpy.run_module", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "pandas.read_pickle",
    "numpy.DataSource", "torch.hub.load", "torch.hub.load_state_dict_from_url", "torch.jit.load",
    "torch.export.load", "torch.package.PackageImporter", "hydra.utils.instantiate",
    "hydra.utils.call", "hydra.utils.get_method", "ssl._create_unverified_context",
    "scipy.io.loadmat", "joblib.load", "torchvision.datasets.utils.extract_archive",
    "torchvision.datasets.utils.download_url", "torch.hub.download_url_to_file", "hashlib.md5",
    "hashlib.sha1", "importlib.import_module", "urllib.request.urlopen",
    "urllib.request.urlretrieve", "markupsafe.Markup",
}  # fmt: skip
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
METHODS = {"load_from_checkpoint", "extract", "add_safe_globals", "set_default_safe_globals"}
ALLOWED = {
    ("prepare/archives.py", "torchvision.datasets.utils.extract_archive"): (
        "within safe_tar, after the list of a zip file was looked through"
    ),
    ("data/datasets.py", "torchvision.datasets.utils.extract_archive"): "after its MD5",
    ("prepare/archives.py", "torchvision.datasets.utils.download_url"): "with its MD5",
    ("evaluation/pretrained.py", "torch.hub.download_url_to_file"): "with its digest",
    ("methods/__init__.py", "importlib.import_module"): "modules of this package",
    ("host/__init__.py", "importlib.import_module"): "one of two modules beside it",
    ("host/later.py", "importlib.import_module"): "the module of a name that was deferred",
    ("host/peers.py", "importlib.import_module"): "solo-learn's, by a name that is written there",
}


def dangers(source):
    """Names of the dangerous calls in Python source."""
    tree = ast.parse(source)
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module:
            if not all(alias.name.endswith("Error") for alias in node.names):
                yield from {node.module.split(".")[0]} & MODULES
            names.update({a.asname or a.name: f"{node.module}.{a.name}" for a in node.names})
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not node.attr.endswith("Error"):
            yield from {names.get(ast.unparse(node.value))} & MODULES
        if isinstance(node, ast.Call):
            first, _, rest = ast.unparse(node.func).partition(".")
            name = ".".join([names.get(first, first), *([rest] if rest else [])])
            given = {word.arg: word.value for word in node.keywords}
            if _is_dangerous(name, given):
                yield name


def _is_dangerous(name, given):
    def says(word, value):
        return isinstance(given.get(word), ast.Constant) and given[word].value is value

    if name in NEVER or name.rpartition(".")[2] in METHODS:
        return True
    if name == "torch.load":
        return not says("weights_only", True)
    if name in ("numpy.load", "numpy.fromfile", "numpy.lib.format.read_array"):
        return "allow_pickle" in given and not says("allow_pickle", False)
    if name.endswith(".extractall"):
        return not (isinstance(given.get("filter"), ast.Constant) and says("filter", "data"))
    if name.startswith(("subprocess.", "asyncio.create_subprocess", "os.exec", "os.spawn")):
        return name == "asyncio.create_subprocess_shell" or (
            "shell" in given and not says("shell", False)
        )
    if name.endswith("Environment"):
        return not says("autoescape", True)
    return says("verify", False) or says("weights_only", False) or says("autoescape", False)


def test_the_code_calls_nothing_that_runs_what_it_reads():
    found = {
        (str(path.relative_to(PACKAGE)), name)
        for path in sorted(PACKAGE.rglob("*.py"))
        for name in dangers(path.read_text(encoding="utf-8"))
    }
    assert found == set(ALLOWED)


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "import pickle as p\np.loads(b'')",
        "import pickle\nread = pickle.Unpickler",
        "from pickle import loads",
        "import os\nos.system('x')",
        "from os import system as s\ns('x')",
        "import torch\ntorch.load('x')",
        "from torch import load\nload('x', weights_only=False)",
        "import torch as t\nt.load('x', weights_only=maybe)",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import subprocess\nsubprocess.run('x', shell=True)",
        "import subprocess as s\ns.Popen(c, shell=flag)",
        "import yaml\nyaml.load(text)",
        "import tarfile\ntarfile.open('x').extractall('y')",
        "import zipfile\nzipfile.ZipFile('x').extract('y')",
        "import requests\nrequests.get('x', verify=False)",
        "import hashlib\nhashlib.md5(b'')",
        "import tempfile\ntempfile.mktemp()",
        "from hydra.utils import instantiate\ninstantiate(c)",
        "import jinja2\njinja2.Environment()",
        "Model.load_from_checkpoint('x')",
    ],
)
def test_the_look_at_the_code_finds(source):
    assert list(dangers(source))


def test_no_template_marks_text_as_safe():
    for path in PACKAGE.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\|\s*safe\b|autoescape|<script|javascript:", text), path


def _bash():
    return [*(ROOT / "scripts").rglob("*.sh"), *(ROOT / "scripts").rglob("*.sbatch")]


@pytest.mark.parametrize("path", _bash(), ids=lambda path: path.name)
def test_a_script_runs_no_words_of_the_user(path):
    code = "\n".join(
        line.split(" # ")[0]
        for line in path.read_text().splitlines()
        if not line.lstrip().startswith("#")
    )
    assert not re.search(r"(^|[\s;&|(])(eval|source|\.)\s", code, re.MULTILINE)
    assert not re.search(r"(bash|sh) -c", code) and "`" not in code
    # What the user wrote stands in quotes wherever it stands.
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', '""', code)
    # bash splits neither what is assigned nor what `case` looks at.
    bare = re.sub(r"(?m)^\s*(local )?\w+=\S*$|\bcase \$1 in$|\bstack=\S+", "", bare)
    assert not re.search(r"\$(@|\*|[1-9]|\{[1-9@*])", bare), path


HOSTILE_WORDS = ["a=$(touch pwned)", "b=;touch pwned", "c=`touch pwned`", "d=x\ntouch pwned", "e=*"]


@pytest.mark.parametrize("script", ["run.sh", "torchrun.sh", "cifar10/mec.sh"])
def test_shell_characters_reach_the_command_as_they_are(script, tmp_path):
    program = tmp_path / "program"
    program.write_text(f"#!{sys.executable}\nimport sys; print(ascii(sys.argv[1:]))\n")
    program.chmod(0o755)
    recipe = [] if "/" in script else ["cifar10/mec $(touch pwned)"]
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / script), *recipe, *HOSTILE_WORDS],
        cwd=tmp_path,
        env={**os.environ, "SOLO_MINENT": str(program), "TORCHRUN": str(program)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    first = ast.literal_eval(done.stdout.splitlines()[0])
    assert first[-len(HOSTILE_WORDS) :] == HOSTILE_WORDS and set(recipe) <= set(first)
    assert [path.name for path in tmp_path.iterdir()] == ["program"]


# Archives.


@pytest.fixture
def outside(tmp_path):
    """`outside()`: what lies in the test's folder beside `work`, which an archive may fill."""
    (tmp_path / "work").mkdir()
    (tmp_path / "target.txt").write_text("kept")
    yield lambda: {
        str(p.relative_to(tmp_path)): p.read_text()
        for p in tmp_path.rglob("*")
        if p.is_file() and "work" not in p.relative_to(tmp_path).parts[:1]
    }


def _zip(path, *members, kind=0, content=b"x"):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in members:
            member = zipfile.ZipInfo("placeholder")
            member.filename = name  # ZipInfo() would cut it at a NUL
            member.external_attr = (kind | 0o644) << 16
            member.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(member, content)
    return path


def _zip_twice(path):
    with pytest.warns(UserWarning, match="Duplicate"):
        return _zip(path, "train/a", "train/a")


ZIPS = {
    "above": (lambda p: _zip(p, "../target.txt"), "no path below it"),
    "above, deep": (lambda p: _zip(p, "train/../../../target.txt"), "no path below it"),
    "absolute": (lambda p: _zip(p, "/tmp/target.txt"), "no path below it"),
    "Windows": (lambda p: _zip(p, "..\\target.txt"), "no path below it"),
    "drive": (lambda p: _zip(p, "C:target.txt"), "no file"),
    "newline": (lambda p: _zip(p, "train/a\nerror: b"), "no path below it"),
    "escape": (lambda p: _zip(p, "train/\x1b[31m"), "no path below it"),
    "link": (lambda p: _zip(p, "train", kind=stat.S_IFLNK, content=b"../.."), "no file"),
    "device": (lambda p: _zip(p, "train/null", kind=stat.S_IFCHR), "no file"),
    "twice": (_zip_twice, "there twice"),
    "bomb": (lambda p: _zip(p, "train/a", content=bytes(1 << 26)), "would unpack to 67108864"),
}


@pytest.mark.parametrize("kind", ZIPS)
def test_hostile_zip(kind, tmp_path, outside, capsys):
    make, words = ZIPS[kind]
    archive = make(tmp_path / "work" / "tiny-imagenet-200.zip")
    before = outside()
    root = tmp_path / "work" / "root"
    command = ["prepare", "tiny_imagenet", "--root", str(root), "--from", str(archive)]
    assert main(command) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: cannot unpack {archive}: ") and words in error
    assert outside() == before and not list(root.iterdir())


def test_a_name_that_ends_at_a_nul_is_refused(tmp_path):
    archive = _zip(tmp_path / "a.zip", "train/aXb")
    archive.write_bytes(archive.read_bytes().replace(b"train/aXb", b"train/a\0b"))
    job = Job("tiny_imagenet", tmp_path / "root")
    with pytest.raises(UserError, match="no path below it"):
        unpack(job, archive, job.staging / "unpacked")


def test_a_zip_that_lies_about_its_sizes(tmp_path):
    archive = _zip(tmp_path / "a.zip", "train/a", content=bytes(1000))
    raw = archive.read_bytes()
    size = (1000).to_bytes(4, "little")
    assert raw.count(size) == 2
    archive.write_bytes(raw.replace(size, (10).to_bytes(4, "little")))
    job = Job("tiny_imagenet", tmp_path / "root")
    with pytest.raises(UserError, match="cannot unpack"):
        unpack(job, archive, job.staging / "unpacked")
    assert not list((tmp_path / "root").iterdir())


def _tar(path, *members):
    with tarfile.open(path, "w:gz") as archive:
        for name, kind, target in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            member.size = 4 if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(b"evil"))
    return path


TARS = {
    "absolute link": [("a", tarfile.SYMTYPE, "/etc/passwd")],
    "link above": [("a", tarfile.SYMTYPE, "../../../target.txt")],
    "hard link": [("a", tarfile.LNKTYPE, "../../../target.txt")],
    "through a link": [
        ("a", tarfile.SYMTYPE, "../../.."),
        ("a/target.txt", tarfile.REGTYPE, ""),
    ],
    "above": [("../../../target.txt", tarfile.REGTYPE, "")],
    "device": [("a", tarfile.CHRTYPE, "")],
    "pipe": [("a", tarfile.FIFOTYPE, "")],
}


@pytest.mark.parametrize("kind", TARS)
def test_hostile_tar(kind, tmp_path, outside):
    archive = _tar(tmp_path / "work" / "a.tar.gz", *TARS[kind])
    before = outside()
    job = Job("cifar10", tmp_path / "work" / "root")
    with pytest.raises(UserError, match="cannot unpack"):
        unpack(job, archive, job.staging / "unpacked")
    assert outside() == before and not list(job.root.iterdir())


def test_odd_names_in_a_tar_stay_in_their_folder(tmp_path, outside):
    names = ["/absolute", "C:\\windows", "new\nline", "twice", "twice", "$(touch pwned)"]
    members = [(name, tarfile.REGTYPE, "") for name in names]
    archive = _tar(tmp_path / "work" / "a.tar.gz", *members)
    before = outside()
    job = Job("cifar10", tmp_path / "work" / "root")
    unpack(job, archive, job.staging / "unpacked")
    found = sorted(path.name for path in (job.staging / "unpacked").iterdir())
    assert found == sorted({name.lstrip("/") for name in names})
    assert outside() == before


# Pickles in the place of data.


class Touch:
    """A pickle that makes a file where it is loaded."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("name", ["data_batch_1", "test_batch", "batches.meta"])
def test_a_pickle_that_is_not_cifars_is_never_loaded(name, tmp_path, capsys):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for file in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
        (folder / file).write_bytes(pickle.dumps(Touch(tmp_path / "pwned")))
    for split in ("train", "test"):
        with pytest.raises(UserError, match="cifar10 is damaged"):
            load_split("cifar10", tmp_path, split)
    assert not (tmp_path / "pwned").exists()


def test_an_archive_of_the_right_md5_must_have_the_right_sha256(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    from solo_minent.prepare import prepare, published

    assert {CIFAR10.tgz_md5} < set(published.SHA256)
    archive = tmp_path / CIFAR10.filename
    _tar(archive, ("cifar-10-batches-py/data_batch_1", tarfile.REGTYPE, ""))
    monkeypatch.setattr("torchvision.datasets.utils.check_integrity", lambda *_: True)
    monkeypatch.setattr(published, "damaged", lambda *_: ["data_batch_1"])
    with pytest.raises(UserError, match="archive is another one: .*SHA-256 must be 6d958be0"):
        prepare("cifar10", tmp_path / "root", source=archive)
    assert not (tmp_path / "root" / "cifar-10-batches-py").exists()


# Lists.


@pytest.mark.parametrize(
    "line", ["../secret.png", "/etc/passwd", "a/../../secret.png", "a\0/b.png"]
)
def test_a_file_list_chooses_among_the_images_and_reads_nothing_else(line, tmp_path):
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    (folder / "b.png").touch()
    (tmp_path / "secret.png").touch()
    (tmp_path / "list.txt").write_text(f"a/b.png\n{line}\n")
    images = FileImages([str(folder / "b.png")], np.zeros(1, dtype=np.int64), ["a"])
    with pytest.raises(UserError, match="names 1 missing images of 2"):
        select_listed(images, tmp_path / "list.txt", "train")


@pytest.mark.parametrize("name", ["../secret", "/etc/secret", "a/../../secret", "../../secret"])
def test_annotations_name_images_below_their_folder(name, tmp_path):
    entry = {"id": 1, "file_name": f"{name}.jpg", "width": 9, "height": 9}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "area": 25}
    content = {"images": [entry], "annotations": [box], "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "coco.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="a name leaves its folder: .*secret.jpg. in .*coco.json"):
        coco_data(tmp_path / "coco.json", tmp_path / "images")
    listed = tmp_path / "VOC2007" / "ImageSets" / "Main" / "train.txt"
    listed.parent.mkdir(parents=True)
    listed.write_text(f"{name}\n")
    with pytest.raises(UserError, match="a name leaves its folder: .*secret.xml. in .*train.txt"):
        voc_data(tmp_path, [("VOC2007", "train")])


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICNS", "SGI"])
def test_an_image_of_another_format_is_given_to_no_other_program(kind, tmp_path):
    """Pillow hands PostScript to Ghostscript, whatever the file is called."""
    image = tmp_path / "image.jpg"
    Image.new("RGB", (9, 9)).save(image, kind)
    annotated = AnnotatedImage(image, 9, 9, *[np.zeros((0, 4))] * 4, None)
    with pytest.raises(UserError, match="image cannot be decoded"):
        _read_rgb(annotated)
    with pytest.raises(UserError, match="cannot read an image"):
        decode(image.read_bytes(), "image.jpg")


# Run folders that somebody else made.


@pytest.fixture
def foreign(tiny_run, tmp_path, monkeypatch):
    """Folder of a run of another person, the working folder being empty."""
    config = tiny_run("mec")
    folder = tmp_path / "foreign"
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(config))
    (folder / "log.csv").write_text("epoch,train_mec_loss,val_acc1\n1,0.5,20\n2,0.4,30\n")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return folder


def refused(capsys, *command):
    """The one line of a refusal."""
    assert main([str(word) for word in command]) == 2
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
    return line


def _pickled(path, mark, how):
    path.parent.mkdir(parents=True, exist_ok=True)
    contents = {"state_dict": {"a": torch.zeros(1)}, "note": Touch(mark), "epoch": 1}
    if how == "pickle":
        path.write_bytes(pickle.dumps(Touch(mark), protocol=2))
    else:
        torch.save(contents, path, _use_new_zipfile_serialization=how == "zip")


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("place", ["backbone.safetensors", "target.pth", "features"])
def test_hostile_weights_of_a_run(place, how, foreign, tmp_path, capsys):
    mark = tmp_path / "pwned"
    path = foreign / ("target.pth" if place == "target.pth" else "backbone.safetensors")
    _pickled(path, mark, how)
    target = ["--target", path] if place == "target.pth" else []
    command = "umap" if place == "features" else "knn"
    line = refused(capsys, command, foreign, *target)
    assert "weights" in line and not mark.exists()


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_hostile_checkpoint_of_a_run(how, tiny_run, tmp_path, capsys):
    config, mark = tiny_run("mec"), tmp_path / "pwned"
    config.run_dir.mkdir(parents=True)
    (config.run_dir / "config.yaml").write_text(to_yaml(config))
    _pickled(config.run_dir / "checkpoints" / "last.ckpt", mark, how)
    line = refused(capsys, "pretrain", "--recipe", config.run_dir / "config.yaml")
    assert "checkpoint" in line and not mark.exists()


@pytest.mark.parametrize(
    "metadata",
    [
        {"data": '{"root": "$(touch pwned)", "dataset": "digits"}', "backbone": "{}"},
        {"data": "__import__('os').system('touch pwned')", "backbone": "[1]", "method": "mec"},
        {"data": '{"__class__": "x"}', "backbone": '{"name": "timm:../../x"}'},
        {"data": "[" * 100_000, "backbone": "[" * 100_000},
    ],
)
def test_hostile_metadata_of_weights(metadata, foreign, capsys):
    header = {"format": "solo_minent backbone 1", "method": "mec", **metadata}
    save_file({"conv1.weight": torch.zeros(1)}, foreign / "backbone.safetensors", header)
    assert "weights" in refused(capsys, "knn", foreign)
    assert not list(Path().iterdir())


HTML = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'{{ 7 * 7 }}$(touch pwned)"


def test_hostile_files_of_a_run_in_a_report(foreign, tmp_path, capsys):
    result = dict.fromkeys(("evaluation", "dataset", "protocol", "date", "weights"), HTML)
    result |= {"target": "trained", "top1": 12.5, HTML: 3.5, "seed": HTML, "train_images": HTML}
    results = [result, {**result, "top1": float("nan"), "versions": {HTML: HTML}}]
    (foreign / "results.json").write_text(json.dumps(results))
    (foreign / "environment.json").write_text(json.dumps([{HTML: HTML, "packages": {HTML: HTML}}]))
    quoted = '"monitor_' + HTML.replace('"', '""') + '"'
    (foreign / "log.csv").write_text(f"epoch,train_mec_loss,{quoted}\n1,0.5,1\n2,0.4,2\n")
    config = (foreign / "config.yaml").read_text()
    config = re.sub(r"(?m)^  root: .*", f"  root: {json.dumps(HTML)}", config)
    (foreign / "config.yaml").write_text(config)
    assert main(["report", str(foreign)]) == 0
    page = (foreign / "report.html").read_text()
    assert "<script" not in page and "<img src=x" not in page and "49" not in page.split("{{")[-1]
    assert "&lt;script&gt;" in page
    assert not list(Path().iterdir()) and not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("results.json", "[" * 100_000),
        ("results.json", '[{"target": 1e999}]'),
        ("environment.json", "[" * 100_000),
        ("log.csv", "epoch,$\\frac{$\n1,x\n"),
        ("log.csv", "epoch\n" + "9" * 5000 + "\n"),
        ("config.yaml", "method: !!python/object/apply:os.system ['touch pwned']\n"),
        ("config.yaml", "_target_: os.system\ncommand: touch pwned\n"),
        ("config.yaml", "a: &a [x]\nb: &b [*a,*a]\nc: [*b,*b]\n"),
    ],
)
def test_hostile_files_of_a_run_are_refused_in_one_line(file, content, foreign, capsys):
    (foreign / file).write_text(content)
    assert str(foreign) in refused(capsys, "report", foreign)
    assert not list(Path().iterdir())


@pytest.mark.parametrize("name", ["$(touch pwned)", "; touch pwned", "a\nb", "../../up", "/abs"])
def test_a_run_is_named_by_one_folder(name, foreign, tmp_path, capsys):
    line = refused(capsys, "pretrain", "--recipe", "digits/mec", f"name={json.dumps(name)}")
    assert "name is no folder name" in line
    assert not list(Path().iterdir())


def test_nothing_in_a_recipe_is_instantiated(tmp_path, capsys):
    for key in ("method_kwargs", "backbone.kwargs", "optimizer.kwargs"):
        words = [f"{key}._target_=os.system", f"{key}.command='touch {tmp_path / 'pwned'}'"]
        refused(capsys, "pretrain", "--recipe", "digits/mec", f"output_dir={tmp_path}", *words)
    assert not list(tmp_path.iterdir())


def test_kept_features_replace_a_link_and_not_what_it_names(tmp_path):
    key = {"count": 3, "skip_corrupt": False}
    path = features_file(tmp_path / "run", key)
    path.parent.mkdir(parents=True)
    (tmp_path / "target").write_text("kept")
    path.symlink_to(tmp_path / "target")
    assert read_features(path, key) is None
    write_features(path, key, torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64))
    assert (tmp_path / "target").read_text() == "kept" and not path.is_symlink()


def test_the_locks_of_a_run_write_through_no_link(foreign, tmp_path, capsys):
    target = tmp_path / "target"
    for lock in (f".{RESULTS_FILE}.lock", LOCK_FILE):
        target.write_text("kept")
        (foreign / lock).symlink_to(target)
    with pytest.raises(OSError, match="symbolic links"):
        add_result(foreign, {"target": "trained"})
    words = ["--recipe", foreign / "config.yaml", f"folder={foreign}"]
    assert "symbolic links" in refused(capsys, "pretrain", *words)
    assert target.read_text() == "kept"


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_hostile_kept_features(how, tmp_path):
    key = {"count": 3, "skip_corrupt": False}
    path = features_file(tmp_path / "run", key)
    _pickled(path, tmp_path / "pwned", how)
    assert read_features(path, key) is None and not (tmp_path / "pwned").exists()
