"""Checkpoints: what is saved comes back bit for bit, or is refused by the name of what is wrong."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reasoning.runtime.checkpoints import Checkpoints, DamagedCheckpoint


def make_state(seed=0):
    """Parameters of several dtypes with an optimizer's state."""
    rng = np.random.default_rng(seed)
    params = {
        "layer": {"up": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32), "none": None},
        "half": jnp.asarray(rng.normal(size=(2,)), jnp.bfloat16),
        "step": jnp.asarray(seed, jnp.int32),
    }
    return params, optax.adam(1e-3).init(params)


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(*map(jax.tree.leaves, (a, b))):
        assert x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.fixture
def saved(tmp_path):
    """Steps 0 to 3 of which the last two are kept."""
    with Checkpoints(tmp_path / "steps") as checkpoints:
        for step in range(4):
            checkpoints.save(step, make_state(step), {"phase": "base", "step": 10 * step})
    return tmp_path / "steps"


def test_a_state_comes_back_bit_for_bit(saved):
    with Checkpoints(saved) as checkpoints:
        assert checkpoints.steps() == [2, 3] and checkpoints.latest() == 3
        for step in (2, 3):
            assert checkpoints.about(step)["step"] == 10 * step
            same(checkpoints.restore(step, make_state()), make_state(step))
        abstract = jax.eval_shape(make_state)
        same(checkpoints.restore(3, abstract), make_state(3))


def test_a_new_directory_holds_nothing(tmp_path):
    with Checkpoints(tmp_path / "new") as checkpoints:
        with pytest.raises(DamagedCheckpoint, match=r"latest\.json: cannot be read \(No such file"):
            checkpoints.latest()
        checkpoints.create()
        assert checkpoints.latest() is None and checkpoints.steps() == []


def test_what_is_saved_is_the_state_of_that_moment(tmp_path):
    add = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    state = {"w": jnp.zeros(100_000)}
    with Checkpoints(tmp_path) as checkpoints:
        for step in range(10):
            checkpoints.save(step, state, {})
            state = add(state)  # gives its memory away while the step is being written
            checkpoints.wait()
            assert (np.asarray(checkpoints.restore(step, state)["w"]) == step).all()


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (lambda params: {**params, "half": jnp.zeros(3, jnp.bfloat16)},
         "0.half is bfloat16[2] there and bfloat16[3] here"),
        (lambda params: {**params, "half": jnp.zeros(2)},
         "0.half is bfloat16[2] there and float32[2] here"),
        (lambda params: {**params, "bias": jnp.zeros(())},
         "0.bias is absent there and float32[] here"),
        (lambda params: {"layer": params["layer"], "step": params["step"]},
         "0.half is bfloat16[2] there and absent here"),
    ],
)
def test_another_tree_is_refused_by_its_first_difference(saved, change, difference):
    params, opt_state = make_state()
    with Checkpoints(saved) as checkpoints, pytest.raises(ValueError) as error:
        checkpoints.restore(3, (change(params), opt_state))
    assert difference in str(error.value)


def files(step):
    """All that are not empty, but for Orbax's notes beside the state, which nothing reads."""
    ours = [step / "about.json", step / "checksums.json"]
    return [path for path in [*(step / "state").rglob("*"), *ours] if path.is_file()
            and path.stat().st_size]


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_every_damaged_file_is_found(saved, damage):
    kept = saved.parent / "kept"
    shutil.copytree(saved, kept)
    for file in files(kept / "3"):
        shutil.rmtree(saved)
        shutil.copytree(kept, saved)
        target = saved / file.relative_to(kept)
        content = bytearray(target.read_bytes())
        if damage == "flip":
            content[len(content) // 2] ^= 1
            target.write_bytes(content)
        elif damage == "truncate":
            target.write_bytes(content[:-1])
        else:
            target.unlink()
        with Checkpoints(saved) as checkpoints:
            with pytest.raises(DamagedCheckpoint, match=r"/3/"):
                checkpoints.restore(3, make_state())
            same(checkpoints.restore(2, make_state()), make_state(2))


def test_a_step_that_is_lost_is_missed(saved):
    shutil.rmtree(saved / "3")
    with Checkpoints(saved) as checkpoints:
        with pytest.raises(DamagedCheckpoint, match=r"3: is missing\."):
            checkpoints.latest()
        checkpoints.pass_over()
        assert checkpoints.latest() == 2


@pytest.mark.parametrize("sums", ["{}", "[1]", "{", ""])
def test_a_damaged_step_is_passed_over_and_set_aside(saved, sums):
    (saved / "3" / "checksums.json").write_text(sums)
    with Checkpoints(saved) as checkpoints:
        with pytest.raises(DamagedCheckpoint):
            checkpoints.about(3)
        checkpoints.pass_over()
        assert checkpoints.latest() == 2
        (aside,) = saved.glob("damaged_3_*")
        assert (aside / "checksums.json").read_text() == sums
        checkpoints.save(3, make_state(7), {})
        checkpoints.wait()
        same(checkpoints.restore(3, make_state()), make_state(7))


@pytest.mark.parametrize("content", ["", '{"sTep": 3}', "[1]", '{"step": "3"}', None])
def test_a_damaged_name_of_the_last_step_is_said_and_mended(saved, content):
    if content is None:
        (saved / "latest.json").unlink()
    else:
        (saved / "latest.json").write_text(content)
    with Checkpoints(saved) as checkpoints:
        with pytest.raises(DamagedCheckpoint, match=r"latest\.json: cannot be read \(.+\)\."):
            checkpoints.latest()
        checkpoints.pass_over()
        assert checkpoints.latest() == 3 and checkpoints.steps() == [2, 3]
        same(checkpoints.restore(3, make_state()), make_state(3))


@pytest.mark.parametrize("damaged", [("2", "3"), ("2", "3", "latest.json"), ("3", "2/state")])
def test_where_no_step_is_whole_none_is_passed_over(saved, damaged):
    for name in damaged:
        path = saved / name
        target = path if path.is_file() else next(path.rglob("manifest.ocdbt"))
        target.write_bytes(b"")
    before = sorted(saved.rglob("*"))
    with Checkpoints(saved) as checkpoints:
        for _ in range(2):
            with pytest.raises(DamagedCheckpoint, match="holds no step before that is whole"):
                checkpoints.pass_over()
    assert sorted(saved.rglob("*")) == before


def test_a_disk_that_is_full_is_an_os_error_and_the_step_before_is_there(saved, monkeypatch):
    words = "RESOURCE_EXHAUSTED: Failed to write: No space left on device [os_error_code='28']"

    def fail(*_):
        raise ValueError(words)

    with Checkpoints(saved) as checkpoints:
        checkpoints.save(4, make_state(4), {})
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints._manager(), "wait_until_finished", fail)
            with pytest.raises(OSError, match="No space left on device") as error:
                checkpoints.wait()
        assert error.value.errno == 28 and error.value.filename == str(saved)
    # The step that failed is not said to have been there: losing it is no damage.
    assert json.loads((saved / "latest.json").read_text()) == {"step": 3}
    shutil.rmtree(saved / "4")
    with Checkpoints(saved) as checkpoints:
        assert checkpoints.latest() == 3


def test_a_save_that_cannot_begin_is_not_said_to_be_there(saved, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    with Checkpoints(saved) as checkpoints:
        monkeypatch.setattr(checkpoints._manager(), "save", fail)
        with pytest.raises(OSError, match="No space left on device"):
            checkpoints.save(4, make_state(4), {})
    with Checkpoints(saved) as checkpoints:
        assert checkpoints.latest() == 3


def test_what_a_kill_leaves_of_a_save_is_no_step(saved):
    shutil.copytree(saved / "3", saved / "4.orbax-checkpoint-tmp-1")
    with Checkpoints(saved) as checkpoints:
        assert checkpoints.latest() == 3
        checkpoints.save(4, make_state(4), {})
    assert json.loads((saved / "latest.json").read_text()) == {"step": 4}
    assert not list(saved.glob("*tmp*"))
