"""A study divides images anew, sizes networks fairly, refuses nonsense, and repeats nothing."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import recipe_of

from adapt.cost.units import detector_units, madds
from adapt.data.coco import CocoSplit
from adapt.data.images import InputSize
from adapt.detector.config import DetectorConfig, RetinaNetConfig
from adapt.detector.file import read_detector_info
from adapt.errors import AdaptError
from adapt.progress import silent
from adapt.sources import mobilenet_v2
from bench.acceptance.meet import TOLERANCE, BudgetMeter, Met, closest_factor
from bench.acceptance.scaling import Sized, scaled
from bench.costs.selection import Shard
from bench.study.chosen import Chosen
from bench.study.division import divided_anew
from bench.study.execution import Execution
from bench.study.latency import Latencies, measure_latencies
from bench.study.preparation import Preparation, candidate_epochs
from bench.study.report import findings, write_study
from bench.study.result import ArmResult, StudyResult, budget_now_ms
from bench.study.run import StudyRun
from bench.study.spec import STUDIES, Arm, Study, arms_named
from bench.study.trial import Trial
from search.derive.chance import noise_deriver
from search.recipe.joint import Setting
from search.recipe.recipe import Recipe

DETECTOR = RetinaNetConfig(fpn_width=64, head_depth=2)
SETTING = Setting(DETECTOR, InputSize(256, 320))


@pytest.fixture(scope="module")
def three_splits(tmp_path_factory: pytest.TempPathFactory, tiny_data: CocoSplit) -> Path:
    """The tiny data set, its eight training images divided among three splits."""
    root = tmp_path_factory.mktemp("three")
    content = json.loads(tiny_data.annotations.read_text())
    (root / "annotations").mkdir()
    (root / "images").symlink_to(tiny_data.folder)
    for name, part in (("train", slice(0, 4)), ("val", slice(4, 6)), ("test", slice(6, 8))):
        images = content["images"][part]
        ids = {image["id"] for image in images}
        boxes = [one for one in content["annotations"] if one["image_id"] in ids]
        split = {**content, "images": images, "annotations": boxes}
        (root / "annotations" / f"{name}.json").write_text(json.dumps(split))
    return root


@pytest.fixture
def recipe(three_splits: Path, tiny_space_file: Path) -> Recipe:
    recipe = recipe_of(tiny_space_file)
    data = {"root": str(three_splits), "test": "test"}
    return recipe.changed({"data": data, "finetune": {"epochs": 1}}, "test")


def boxes_by_file(recipe: Recipe) -> dict[str, list[list[float]]]:
    splits = [recipe.split(name) for name in ("train", "val", "test")]
    return {
        str(image.path.resolve()): boxes.xyxy.tolist()
        for split in splits
        for image, boxes in zip(split.images, split.boxes, strict=True)
    }


def test_every_seed_divides_the_same_images_otherwise(recipe: Recipe, tmp_path: Path) -> None:
    divisions = [divided_anew(recipe, tmp_path / str(seed), seed) for seed in (0, 1)]
    for division in divisions:
        assert [len(division.split(n)) for n in ("train", "val", "test")] == [4, 2, 2]
        assert boxes_by_file(division) == boxes_by_file(recipe)
    names = [{i.path.name for i in d.split("train").images} for d in divisions]
    assert names[0] != names[1]
    again = divided_anew(recipe, tmp_path / "again", 0)
    assert {i.path.name for i in again.split("train").images} == names[0]


def test_a_division_of_other_images_is_neither_used_nor_deleted(
    recipe: Recipe, tmp_path: Path
) -> None:
    divided_anew(recipe, tmp_path / "seed0", 0)
    with pytest.raises(AdaptError, match="seed0 holds the images of another data set"):
        divided_anew(recipe, tmp_path / "seed0", 1)
    mine = tmp_path / "mine" / "photo.jpg"
    mine.parent.mkdir()
    mine.touch()
    with pytest.raises(AdaptError, match=r"division.json does not exist"):
        divided_anew(recipe, mine.parent, 0)
    assert mine.exists()


def test_a_study_needs_images_that_nothing_is_chosen_on(recipe: Recipe, tmp_path: Path) -> None:
    without = recipe.changed({"data": {"test": ""}}, "test")
    with pytest.raises(AdaptError, match=r"needs different data\.train, data\.val and data\.test"):
        divided_anew(without, tmp_path, 0)


@pytest.mark.parametrize(
    ("factor", "widths"),
    [(1.0, [24, 32, 64, 96, 160, 320]), (0.75, [16, 24, 48, 72, 120, 240])],
)
def test_width_scaling_keeps_multiples_of_eight(factor: float, widths: list[int]) -> None:
    sized = scaled(mobilenet_v2(), "width", factor, SETTING)
    assert [block.width for block in sized.architecture.blocks] == widths
    assert sized.setting == SETTING


def test_compound_scaling_takes_pyramid_and_heads_along() -> None:
    sized = scaled(mobilenet_v2(), "compound", 0.5, SETTING)
    assert (sized.detector.fpn_width, sized.detector.head_depth) == (32, 1)
    assert scaled(mobilenet_v2(), "compound", 1.0, SETTING) == Sized(mobilenet_v2(), SETTING)


def test_expansion_changes_operations_alone() -> None:
    blocks = scaled(mobilenet_v2(), "expansion", 3, SETTING).architecture.blocks
    assert {op.expansion for block in blocks for op in block.ops} == {3}
    assert [b.width for b in blocks] == [b.width for b in mobilenet_v2().blocks]


@pytest.mark.parametrize("budget_ms", [3.0, 7.0, 11.9])
@pytest.mark.parametrize("step", [0.001, 0.125])  # widths are multiples of a number of channels
def test_few_measurements_find_the_factor_of_a_budget(budget_ms: float, step: float) -> None:
    asked = []

    def latency(factor: float) -> float:
        return 2 + 4 * step * round(factor / step) + factor**2

    def met(factor: float) -> Met:
        asked.append(factor)
        return Met(scaled(mobilenet_v2(), "width", factor, SETTING), latency(factor), "")

    found = closest_factor(met, budget_ms)
    closest = min((latency(f) for f in np.linspace(0.1, 2, 2000)), key=lambda x: abs(x - budget_ms))
    assert abs(found.measured_ms - budget_ms) <= abs(closest - budget_ms) + 0.01 * budget_ms
    assert len(asked) <= (4 if step < 0.1 else 10)


def _width(factor: float) -> Sized:
    return scaled(mobilenet_v2(), "width", factor, SETTING)


def test_factors_that_were_measured_are_not_asked_for_again() -> None:
    asked, known = [], dict[float, Met]()

    def met(factor: float) -> Met:
        asked.append(factor)
        known[factor] = Met(_width(factor), 2 + 4 * factor + factor**2, "")
        return known[factor]

    for budget_ms in (6.0, 5.0, 4.0, 5.02):
        found = closest_factor(met, budget_ms, dict(known))
        assert found.measured_ms == pytest.approx(budget_ms, rel=0.01)
    assert len(set(asked)) == len(asked) <= 8


class Counted(BudgetMeter):
    """A meter on a device where a millisecond is so many multiply-adds."""

    def measure(self, sized: Sized) -> tuple[float, bool]:
        config = DetectorConfig(**sized.detector.to_dict(), num_classes=3)
        units = detector_units(sized.architecture, config, InputSize(256, 320))
        return sum(map(madds, units)) / 1e8, False


@pytest.mark.parametrize("share", [0.5, 0.6, 0.7, 0.75, 0.8, 0.9])
@pytest.mark.parametrize("rule", ["width", "compound"])
def test_scaled_detectors_meet_a_budget_though_heads_lose_whole_layers(
    rule: str, share: float, recipe: Recipe
) -> None:
    meter = Counted(recipe, 3)
    budget_ms = share * meter.measure(Sized(mobilenet_v2(), SETTING))[0]
    met = meter.by_factor(rule, SETTING, budget_ms)
    assert met.measured_ms == meter.measure(met.sized)[0]
    if (rule, share) != ("width", 0.5):  # narrow blocks leave pyramid and heads
        assert met.measured_ms == pytest.approx(budget_ms, rel=TOLERANCE)


class Paced(BudgetMeter):
    """A real meter on a device whose speed is another one on every occasion."""

    speed = 1.0

    def _timed(self, *detectors: Sized) -> tuple[list[float], bool]:
        widths = [sum(block.width for block in one.architecture.blocks) for one in detectors]
        return [self.speed * width for width in widths], False


def test_a_budget_is_the_same_on_another_day(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scaled on a machine that has become faster, a network is not wider."""
    found = []
    with Paced(recipe, 3) as meter:
        source_ms = meter.source_ms()
        found.append(meter.by_factor("width", SETTING, meter.budget_ms("75%")))
    monkeypatch.setattr(Paced, "speed", 0.9)
    with Paced(recipe, 3, source_ms=source_ms) as meter:
        assert meter.source_ms() == source_ms
        found.append(meter.by_factor("width", SETTING, meter.budget_ms("75%")))
    assert found[0].sized == found[1].sized
    assert found[0].measured_ms == pytest.approx(found[1].measured_ms)
    assert found[0].measured_ms == pytest.approx(0.75 * source_ms, rel=TOLERANCE)


def test_a_budget_is_the_same_while_the_machine_becomes_slower(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Networks that take minutes to find are no smaller in the end."""
    found = []
    with Paced(recipe, 3) as meter:
        budget_ms = meter.budget_ms("75%")
        for speed in (1.0, 1.1):
            monkeypatch.setattr(Paced, "speed", speed)
            wide = scaled(mobilenet_v2(), "width", 0.5 + speed / 100, SETTING)
            found.append(meter.measure(wide)[0] / sum(b.width for b in wide.architecture.blocks))
        assert meter.source_ms() == pytest.approx(budget_ms / 0.75)
    assert found[0] == pytest.approx(found[1])


class Disturbed(BudgetMeter):
    """A meter on a machine that something slows down now and then, all that is timed in turns."""

    calls = 0

    def _timed(self, *detectors: Sized) -> tuple[list[float], bool]:
        self.calls += 1
        slower = (1.0, 1.4, 1.1)[self.calls % 3]
        widths = [sum(block.width for block in one.architecture.blocks) for one in detectors]
        return [slower * width for width in widths], slower > 1.3


def test_what_disturbs_a_machine_for_seconds_moves_no_budget(recipe: Recipe) -> None:
    with Disturbed(recipe, 3) as meter:
        budget_ms = meter.budget_ms("75%")
        met = meter.by_factor("width", SETTING, budget_ms)
        source = sum(block.width for block in mobilenet_v2().blocks)
        share = sum(block.width for block in met.sized.architecture.blocks) / source
    assert share == pytest.approx(0.75, rel=TOLERANCE)


class Stepped(Counted):
    """The same, and 24 channels of the first block cost two milliseconds more than 16."""

    def measure(self, sized: Sized) -> tuple[float, bool]:
        first = sized.architecture.blocks[0].width
        return super().measure(sized)[0] + 2 * (first > 16), False


@pytest.mark.parametrize("rule", ["width", "compound"])
def test_a_block_whose_width_steps_over_a_budget_is_held_and_others_are_scaled_on(
    rule: str, recipe: Recipe
) -> None:
    meter = Stepped(recipe, 3)
    wide, narrow = (scaled(mobilenet_v2(), "width", factor, SETTING) for factor in (0.834, 0.833))
    gap = [meter.measure(one)[0] for one in (narrow, wide)]
    assert gap[1] - gap[0] > 2
    budget_ms = sum(gap) / 2
    met = meter.by_factor(rule, SETTING, budget_ms)
    assert met.measured_ms == pytest.approx(budget_ms, rel=TOLERANCE)
    assert met.measured_ms == meter.measure(met.sized)[0]


def test_random_networks_fill_a_budget_and_differ(recipe: Recipe) -> None:
    space = recipe.space.load()
    model = recipe.detectors(3).costs(madds)
    derivers = [noise_deriver(model, space, np.random.default_rng(seed)) for seed in range(8)]
    budget = (derivers[0].cheapest + max(d.dearest for d in derivers)) / 2
    networks = [deriver.best(budget) for deriver in derivers]
    assert all(network.cost <= budget for network in networks)
    assert len({network.choices for network in networks}) > 4
    again = noise_deriver(model, space, np.random.default_rng(0)).best(budget)
    assert again.choices == networks[0].choices


@pytest.mark.parametrize("file", sorted(STUDIES.glob("*.toml")), ids=lambda file: file.stem)
def test_named_studies_can_be_read_and_change_known_fields(file: Path, recipe: Recipe) -> None:
    study = Study.load(file.stem)
    assert study.question
    for arm in study.arms:
        assert study.recipe_of(arm, recipe, 3).seed == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arms = []", "needs arms"),
        ("[[arms]]\nnetwork = 'widht'", "arms.0.network"),
        ("[[arms]]\nnetwork = 'width'", "has to meet a budget"),
        ("[[arms]]\nnetwork = 'source'\nfactor = 2", "has no factor"),
        ("[[arms]]\nnetwork = 'expansion'", "needs a factor"),
        ("budget = '1ms'\n[[arms]]\nnetwork = 'width'\ndraw = 1", "draws no network, got draw 1"),
        ("budget = '1ms'\n[[arms]]\nnetwork = 'random'\ndraw = -1", "draw must be at least 0"),
        ("[[arms]]\nnetwork = 'published'", "needs an architecture, one of mobilenet_v2"),
        ("[[arms]]\nnetwork = 'published'\narchitecture = 'fan'", "got 'fan'"),
        ("[[arms]]\nnetwork = 'source'\narchitecture = 'fna'", "has no architecture"),
        ("[[arms]]\nnetwork = 'source'\nfaktor = 2", "is factor meant?"),
        ("sedes = 3\n[[arms]]\nnetwork = 'source'", "is seeds meant?"),
        ("seeds = 0\n[[arms]]\nnetwork = 'source'", "at least 1"),
        ("[[arms]]\nnetwork = 'source'\n[[arms]]\nnetwork = 'source'", "different names"),
        ("arms = [", "is not TOML"),
    ],
)
def test_wrong_studies_are_refused_in_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "study.toml"
    path.write_text(text)
    with pytest.raises(AdaptError) as error:
        Study.load(str(path))
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_an_unknown_arm_is_refused_with_the_known_ones() -> None:
    with pytest.raises(AdaptError, match="unknown arm 'searhc'; use source, width, compound"):
        arms_named(["searhc"])


def test_candidates_of_a_race_take_as_many_epochs_as_a_joint_choice(recipe: Recipe) -> None:
    changes = {"joint": {"head_depth": [0, 1], "fpn_width": [8, 16], "epochs": 3, "survivors": 2}}
    recipe = recipe.changed({**changes, "finetune": {"epochs": 5}}, "test")
    raced = 4 * 3 + 2 * 6
    assert candidate_epochs("random-joint-best-of-k", recipe) == round((5 + raced) / 4)


@pytest.mark.parametrize(
    ("epochs", "shared", "expected"), [(24, 8, 8), (8, 30, 8), (8, 0, 8), (8, 8, 8)]
)
def test_the_scored_source_trains_as_long_as_in_a_run_but_no_longer_than_a_trial(
    epochs: int, shared: int, expected: int, recipe: Recipe, tmp_path: Path
) -> None:
    changed = recipe.changed({"finetune": {"epochs": epochs, "shared_epochs": shared}}, "test")
    job = Preparation("scores", "scores", changed, tmp_path, None)
    assert job.teaching.finetune.epochs == expected


def test_the_budget_follows_the_source_that_is_measured_beside(recipe: Recipe) -> None:
    study = Study((Arm("source"), Arm("width")), seeds=2, budget="50%")
    trials = [
        Trial(arm.label, seed, recipe, mobilenet_v2(), Path())
        for arm in study.arms
        for seed in (0, 1)
    ]
    measured = {"source-seed0": 21.0, "source-seed1": 23.0, "width-seed0": 11.0}
    assert measured.keys() < {trial.name for trial in trials}
    slow = Latencies(measured, {}, 0.0, {})
    assert budget_now_ms(study, trials, slow) == 11.0
    assert budget_now_ms(replace(study, budget="10ms"), trials, slow) is None
    assert budget_now_ms(replace(study, arms=study.arms[1:]), trials, slow) is None
    chosen = Chosen(scaled(mobilenet_v2(), "width", 0.5, recipe.setting), budget_ms=10.0)
    assert chosen.off_budget(11.0) == pytest.approx(0.1)
    assert chosen.off_budget(11.0, 11.0) == 0.0
    assert replace(chosen, budget_ms=None).off_budget(11.0, 11.0) == 0.0


def test_arms_that_miss_the_budget_are_not_called_equal(recipe: Recipe) -> None:
    met, missed = (
        ArmResult(name, {0: 50.0}, {0: ms}, {0: 1e9}, {0: 1.0}, {0: 0.0}, off)
        for name, ms, off in (("a", 10.1, 0.01), ("b", 9.0, -0.1))
    )
    study = Study((Arm("source"),))
    lines = findings(StudyResult(study, recipe, (met, missed), (), 0.03, {}))
    assert "b is not at equal latency: up to -10.0% of the budget" in lines
    assert not any(line.startswith("a is not") for line in lines)
    assert any(
        "latencies are void: measured again, they differed by up to 3.0%" in x for x in lines
    )


def test_a_shard_without_a_seed_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    how = Execution(shard=Shard(3, 3))
    with pytest.raises(AdaptError, match="part 3 of 3 has none of the 2 seeds"):
        StudyRun(Study((Arm("source"),), seeds=2), recipe, tmp_path, how).execute()


def test_shards_together_do_every_seed_once(recipe: Recipe, tmp_path: Path) -> None:
    study = Study((Arm("source"),), seeds=5)
    parts = [StudyRun(study, recipe, tmp_path, Execution(shard=Shard(n, 2))) for n in (1, 2)]
    assert sorted(seed for part in parts for seed in part.seeds) == [0, 1, 2, 3, 4]


def test_teachers_of_two_sources_are_two(recipe: Recipe, tmp_path: Path) -> None:
    other = recipe.changed({"space": {"preset": "efficientnet_lite0"}}, "the test")
    jobs = [
        Preparation("teacher", rule, one, tmp_path, None)
        for rule in ("teacher", "scores")
        for one in (recipe, other)
    ]
    assert len({job.key() for job in jobs}) == 4


def test_a_study_confirms_with_other_seeds(recipe: Recipe, tmp_path: Path) -> None:
    study = Study((Arm("source"),), seeds=3, first_seed=6, drop_after=2)
    run = StudyRun(study, recipe, tmp_path)
    assert list(run.seeds) == [6, 7, 8]
    assert run._turns() == [range(6, 8), [8]]
    with pytest.raises(AdaptError, match="first_seed must be at least 0, got -1"):
        Study((Arm("source"),), first_seed=-1)


def test_a_device_that_is_not_here_is_told_before_the_work(recipe: Recipe, tmp_path: Path) -> None:
    elsewhere = recipe.with_device(runtime="tensorrt")
    with pytest.raises(AdaptError, match="a study measures and evaluates deployed detectors"):
        StudyRun(Study((Arm("source"),)), elsewhere, tmp_path).execute()
    assert not list(tmp_path.iterdir())


def test_a_study_trains_reports_and_repeats_nothing_wherever_it_is_moved(
    recipe: Recipe, tmp_path: Path
) -> None:
    recipe = replace(recipe, device=replace(recipe.device, rounds=1))
    arms = (Arm("width", factor=0.25), Arm("width", name="narrower", factor=0.1))
    study = Study(arms, seeds=1)
    first, folder = tmp_path / "first", tmp_path / "moved"
    result = StudyRun(study, recipe, first).execute()
    assert [len(arm.ap) for arm in result.arms] == [1, 1]
    assert all(arm.latency_ms.keys() == {0} for arm in result.arms)
    assert not result.missing
    (verdict,) = result.verdicts
    assert "1 pair cannot show anything" in verdict.sentence()
    first.rename(folder)
    written = {path: path.stat().st_mtime_ns for path in (folder / "trials").iterdir()}
    latency = json.loads((folder / "latency.json").read_text())  # as on a steady machine
    (folder / "latency.json").write_text(json.dumps({**latency, "drift": 0.0}))
    again = StudyRun(study, recipe, folder).execute()
    assert again.to_dict() == {**result.to_dict(), "latency_drift": 0.0}
    assert {path: path.stat().st_mtime_ns for path in (folder / "trials").iterdir()} == written
    other = recipe.changed({"finetune": {"lr": 0.02}}, "test")
    with pytest.raises(AdaptError, match="is of another recipe, network or data set"):
        StudyRun(study, other, folder).execute()
    assert result.arms[0].networks[0].endswith("; width 0.25")
    assert "head_depth 1, fpn_width 8, input 64x64; 8: " in result.arms[0].networks[0]
    files = write_study(folder, again)
    assert f"- width: {result.arms[0].networks[0]}" in files[2].read_text()
    assert all(file.stat().st_size for file in files)
    assert files[1].read_text().count("\n") == 1 + 2


def test_arms_share_a_teacher_whose_seconds_count(recipe: Recipe, tmp_path: Path) -> None:
    recipe = replace(recipe, device=replace(recipe.device, rounds=1))
    arms = [
        Arm(
            "width",
            name=f"weight {weight}",
            factor=0.1,
            recipe={"finetune": {"teacher_weight": weight}},
        )
        for weight in (2, 6)
    ]
    result = StudyRun(Study(tuple(arms), seeds=1), recipe, tmp_path).execute()
    first, second = (arm.search_seconds[0] for arm in result.arms)
    assert first == second > 0
    (teacher,) = (tmp_path / "searches").glob("*/teacher-*.safetensors")
    assert read_detector_info(teacher)[0].architecture == mobilenet_v2()
    again = StudyRun(Study(tuple(arms), seeds=1), recipe, tmp_path).execute()
    assert again.to_dict() == result.to_dict()


@pytest.mark.parametrize(("drift", "again"), [(0.01, False), (0.034, True)])
def test_void_latencies_are_measured_again_when_a_study_is_repeated(
    drift: float, again: bool, tmp_path: Path
) -> None:
    path = tmp_path / "latency.json"
    measure_latencies([], path, silent)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "drift": drift}))
    assert measure_latencies([], path, silent).drift == (0.0 if again else drift)
    assert json.loads(path.read_text())["drift"] == (0.0 if again else drift)
