"""What a training run is, as typed values: stages as rows, strict keys, checked before anything starts.

Relative paths are relative to the current directory. Defaults are the published values where a paper has one.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    TypeAdapter,
    ValidationError,
)
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails

from pipelines.order.curriculum import Table
from pipelines.recipes import RECIPES, Mtmfi, Recipe, clip_lengths, make_recipe, recipe_options
from trainers.choices import STRICT, Count, CountOrRows, IsNumber, NotNegative, Number, Rows
from trainers.config_reading import (
    COMMAND_LINE,
    ConfigError,
    apply_overrides,
    find_config,
    nearest_name,
    read_yaml,
    select_stages,
)
from trainers.methods import METHODS, NetworkOptions
from trainers.methods.rde import RdeNetwork
from trainers.objectives import OBJECTIVES, ObjectiveOptions
from trainers.objectives.mtmfi import MtmfiObjectiveOptions
from trainers.objectives.rde import RdeObjectiveOptions
from trainers.optimizers import OptimizerOptions
from trainers.reading_options import DataPath, PooledOptions, ReadingOptions
from trainers.views import Sight

__all__ = ["Config", "ConfigError", "DataEntry", "Stage", "Validation", "as_plain", "load_config", "make_config"]

SHIPPED = Path(__file__).parent / "configs"
"""Configs that come with the program: `load_config` finds them by their bare name, from anywhere."""

Precision = Literal["fp32", "bf16", "fp16"]


def _folder_name(value: str) -> str:
    if value in (".", "..") or "/" in value or "\0" in value:
        raise ValueError(f"{value!r} is no name of a folder; give output=FOLDER for a run outside runs/")
    return value


@dataclass(frozen=True, config=STRICT)
class DataEntry:
    """One shard set in a stage's mix."""

    # Folder with manifest.json, as tools/shard.py wrote it, or its URL.
    path: DataPath
    # By default train, or all where a set of own videos has no other.
    split: str | None = None
    # How often each of its videos comes per pass over the mix; or rows [progress, times], 0 for not at all.
    repeat: CountOrRows = 1
    # Frames between annotated frames, by which a max gap is divided (YouTube-VOS: 5).
    gap_step: Count = 1
    # How many clips of a pass over the mix are its, whatever it holds; null: `repeat` of each video (or object). Rows
    # [progress, clips] as for repeat.
    clips_per_pass: CountOrRows | None = None

    def __post_init__(self) -> None:
        """Refuse two weights."""
        if self.clips_per_pass is not None and self.repeat != 1:
            raise ValueError("repeat does nothing beside clips_per_pass; give one of them")

    def tables(self) -> dict[str, Table]:
        """Name -> table of its weight, if that changes."""
        found = {"repeat": self.repeat, "clips_per_pass": self.clips_per_pass}
        return {name: value for name, value in found.items() if isinstance(value, Table)}


@dataclass(frozen=True, config=STRICT)
class Stage:
    """One row of a recipe: what to train on, for how long, with which loss."""

    name: str
    steps: Count
    # Clips per step over all ranks together.
    batch_size: Count
    data: tuple[DataEntry, ...]
    # Rows [progress, value]: the value holds from that share of the stage's steps on.
    learning_rate: Rows
    # Name of a recipe of pipelines/recipes.py and its options; what is not given has the published value.
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "rde_video"})
    objective: ObjectiveOptions = dataclasses.field(default_factory=RdeObjectiveOptions)
    optimizer: OptimizerOptions = dataclasses.field(default_factory=OptimizerOptions)
    # Coupled (L2), as Adam has it; the optimiser adamw takes it off the weights.
    weight_decay: NotNegative = 1e-7
    # Parts in which each rank's clips go through the model before one update: less memory, the same batch and order.
    accumulate: Count = 1
    # Largest norm of all gradients together; null: as they are.
    clip_gradients: Annotated[Number, Field(gt=0)] | None = None
    # Decay of a moving average of the weights, for example 0.9999; checkpoints then hold the average. null: none.
    ema: Annotated[Number, Field(gt=0, lt=1)] | None = None
    # Mixed precision where the device has it; fp16 exists on GPUs only.
    precision: Precision = "fp32"
    # An order in which few videos are in use at a time; null: a full shuffle.
    pooled: PooledOptions | None = None

    def __post_init__(self) -> None:
        """Refuse an empty mix, a negative learning rate, and clips that cannot be made or trained on."""
        if not self.data:
            raise ValueError("data names no shard set; give a list with at least one path")
        if min(value for _, value in self.learning_rate.rows) < 0:
            raise ValueError("learning_rate has a negative value; weights would climb the loss")
        if self.batch_size % self.accumulate:
            problem = f"batch_size {self.batch_size} does not divide into {self.accumulate} parts to accumulate"
            raise ValueError(f"{problem}; give a multiple of accumulate, or another accumulate")
        if self.pooled is not None and self.batch_size % self.pooled.streams:
            problem = f"batch_size {self.batch_size} does not divide among {self.pooled.streams} streams of pooled"
            raise ValueError(f"{problem}; give a number of streams that divides it")
        self._require_clips_at_every_step()
        recipe = self.clip_recipe()
        for length in clip_lengths(recipe):
            self.objective.require_clips(length, recipe.size)
        if isinstance(self.objective, MtmfiObjectiveOptions) and self.objective.cache and not isinstance(recipe, Mtmfi):
            # Kept target models are named by frame and object: other recipes show a frame otherwise in every clip.
            problem = f"recipe {self.recipe['name']} draws its frames anew for every clip, target models cannot be kept"
            raise ValueError(f"{problem}; set objective.cache: false, or take recipe mtmfi")

    def _require_clips_at_every_step(self) -> None:
        """Refuse steps for which no data set has a weight."""
        if all(entry.tables() for entry in self.data):
            tables = [table for entry in self.data for table in entry.tables().values()]
            for step in sorted({step for table in tables for step, _ in table.switches(self.steps)}):
                if not any(table.at(step, self.steps) for table in tables):
                    problem = f"no data set has clips from step {step} on"
                    raise ValueError(f"{problem}; give one of them a repeat or clips_per_pass above 0 there")

    def clip_recipe(self) -> Recipe:
        """The recipe as an object that makes plans. Raises ValueError for options it does not take."""
        options = dict(self.recipe)
        name = options.pop("name", None)
        if name is None:
            raise ValueError(f"recipe has no name; there are: {', '.join(RECIPES)}")
        try:
            return make_recipe(name, options)
        except TypeError as error:
            raise ValueError(f"recipe {name}: {error}; see its fields in pipelines/recipes") from error


@dataclass(frozen=True, config=STRICT)
class SeenAs(Sight):
    """Sight with strict keys."""


@dataclass(frozen=True, config=STRICT)
class Validation:
    """A held set that is segmented and scored while a run trains, as tools/segment.py and tools/evaluate.py would."""

    # A shard set, or a folder in the layout of DAVIS or YouTube-VOS; every video with its whole truth.
    path: Path
    # Steps of the run between two validations; the end of a stage is one too, and a checkpoint comes before each.
    every: Count
    # null: by the kind of the set, davis2017 for one's own videos.
    protocol: Literal["davis2017", "davis2016", "youtube_vos"] | None = None
    # Of youtube_vos: which categories are unseen, the file of evaluate.py --categories; null: all objects are seen.
    categories: Path | None = None
    # By default the protocol's, or the only one there is.
    split: str | None = None
    # The first so many videos of the split; null: all.
    videos: Count | None = None
    # The sizes the model works at; null: its method's, as for segment.py. Given, it holds in full: what it leaves out
    # has RDE's value.
    sight: SeenAs | None = None

    def __post_init__(self) -> None:
        """Refuse categories where nothing asks for them."""
        if self.categories is not None and self.protocol not in (None, "youtube_vos"):
            problem = f"{self.protocol} knows no categories"
            raise ValueError(f"{problem}; leave them out, or give protocol: youtube_vos")


@dataclass(frozen=True, config=STRICT)
class Config:
    """One run: a model and the stages it goes through, in order."""

    stages: tuple[Stage, ...]
    # Also the name of the run's folder. By default the config file's name.
    name: Annotated[str, AfterValidator(_folder_name)] = ""
    model: NetworkOptions = dataclasses.field(default_factory=RdeNetwork)
    # Weights to start from: one of our checkpoints or a file of the authors. Only weights are taken from it.
    start_from: Path | None = None
    # Names every clip's numbers and a random start; the published runs use this one.
    seed: Annotated[int, IsNumber, Field(ge=0, lt=2**64)] = 14159265
    # Where the run writes; by default runs/<name>.
    output: Path | None = None
    # auto: the GPU of this rank where there is one, else the CPU.
    device: str = "auto"
    # What makes pixels. auto: dali on a GPU, cpu on a CPU.
    executor: Literal["auto", "cpu", "dali", "paper"] = "auto"
    # CPU threads of each rank; by default its share of the cores.
    threads: Count | None = None
    # Batches that are read and decoded ahead of the one in training.
    look_ahead: Count = 4
    reading: ReadingOptions = dataclasses.field(default_factory=ReadingOptions)
    report_every: Count = 100
    checkpoint_every: Count = 10_000
    # Checkpoints kept, the newest; ends of stages, milestones and the best of the validations are kept beside them.
    keep: Count = 3
    # Steps of the run between two checkpoints that are kept for good; null: none.
    milestone_every: Count | None = None
    validation: Validation | None = None
    # Seconds without progress after which a process writes the stacks of its threads and ends the job, three times as
    # many in a stage's first step; null: never.
    hang_seconds: Count | None = 600
    tensorboard: bool = True
    # Curves of the journal as curves.png at the end.
    plots: bool = True
    # Layout and compilation of the model; they change speed, and results by rounding only.
    channels_last: bool = False
    compile: bool = False
    # Only kernels whose sums have one order, on GPUs too; slower, and an error where there is none.
    deterministic: bool = False
    # Keep only what enters the parts of the network and compute the rest again for the backward pass.
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        """Refuse a run without stages and stages of one name."""
        names = [stage.name for stage in self.stages]
        if not names:
            raise ValueError("stages is empty; give at least one")
        if len(set(names)) != len(names):
            raise ValueError(f"stages have equal names: {', '.join(names)}; reports tell them apart by name")
        for stage in self.stages:
            if stage.objective.method != self.model.name:
                problem = f"the objective {stage.objective.name} of stage {stage.name} trains {stage.objective.method}"
                raise ValueError(f"{problem}, and the model is {self.model.name}; name the one or the other anew")
        METHODS[self.model.name].require_stages(self.model, [stage.objective for stage in self.stages])

    @property
    def folder(self) -> Path:
        """Where the run writes."""
        return self.output or Path("runs") / self.name


TAGGED = {"model": list(METHODS), "objective": list(OBJECTIVES)}
"""Sections whose `name` says which options they take, and the names."""

_ADAPTER: TypeAdapter[Config] = TypeAdapter(Config)


def load_config(path: Path, overrides: Iterable[str] = ()) -> Config:
    """The config in the YAML file at `path` with `key=value` words applied on top, in order. Raises ConfigError.

    Words count the stages of the file; `use_stages`, a list of their names, then says which of them run.
    """
    path = find_config(path, SHIPPED)
    values = read_yaml(path)
    keys = apply_overrides(values, overrides)
    select_stages(values, path)
    values.setdefault("name", path.stem)
    return make_config(values, source=path, overridden=keys)


def make_config(values: Mapping[str, Any], *, source: str | Path, overridden: frozenset[str] = frozenset()) -> Config:
    """Plain nested values, as YAML or a checkpoint holds them, as a Config. Raises ConfigError naming the first fault.

    source: where the values come from, for messages; dotted keys in `overridden` came from the command line.
    """
    try:
        return _ADAPTER.validate_python(dict(values))
    except ValidationError as error:
        raise _explain(error.errors(include_url=False), source, overridden) from error


def as_plain(config: Config) -> dict[str, Any]:
    """`config` as dicts, lists, strings and numbers, for YAML, JSON and checkpoints; `make_config` reads it back.

    Every default is written out, those of recipes too.
    """
    plain: dict[str, Any] = _ADAPTER.dump_python(config, mode="json")
    for stage, values in zip(config.stages, plain["stages"], strict=True):
        values["recipe"] = {"name": stage.recipe["name"], **recipe_options(stage.clip_recipe())}
    return plain


def _explain(errors: list[ErrorDetails], source: str | Path, overridden: frozenset[str]) -> ConfigError:
    # A misspelt key shows up as unknown and as missing; the unknown one has the better remedy.
    unknown = [error for error in errors if error["type"] == "unexpected_keyword_argument"]
    error = (unknown or errors)[0]
    # Below a tagged section, the location names which member it was taken for; no key of the file does.
    key = ".".join(str(part) for before, part in pairwise(("", *error["loc"])) if before not in TAGGED)
    place = _origin(key, source, overridden)
    if error["type"] == "unexpected_keyword_argument":
        remedy = nearest_name(str(error["loc"][-1]), _names_at(error["loc"][:-1]))
        return ConfigError(place, "unknown key", key=key, remedy=remedy)
    if error["type"] == "union_tag_invalid":
        name = error["ctx"]["tag"]
        section = str(error["loc"][-1])
        return ConfigError(place, f"unknown {section} {name!r}", key=key, remedy=nearest_name(name, TAGGED[section]))
    if error["type"] == "missing":
        return ConfigError(place, "missing", key=key, remedy="give it a value")
    if error["type"] == "value_error":
        problem, _, remedy = str(error["ctx"]["error"]).rpartition("; ")
        return ConfigError(place, problem or remedy, key=key, remedy=remedy if problem else "correct the value")
    problem = f"{error['input']!r} does not fit"
    return ConfigError(place, problem, key=key, remedy=error["msg"][0].lower() + error["msg"][1:])


def _origin(key: str, source: str | Path, overridden: frozenset[str]) -> str | Path:
    if any(f"{key}.".startswith(f"{word}.") for word in overridden):
        return COMMAND_LINE
    if any(word.startswith(f"{key}.") for word in overridden):
        return f"{source} with the command line's changes"
    return source


def _names_at(location: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the config class at a place such as ("stages", 0)."""
    place: Any = Config
    for part in location:
        place = typing.get_type_hints(place)[str(part)] if dataclasses.is_dataclass(place) else _member(place, part)
        place = _without_none(place)
    return [field.name for field in dataclasses.fields(place)]


def _member(place: Any, part: int | str) -> Any:
    """What a tuple holds, or the member of a tagged union."""
    members = typing.get_args(place)
    if isinstance(part, int):
        return members[0]
    return next(member for member in members if member.name == part)


def _without_none(place: Any) -> Any:
    """Of an optional type, the type; a union of one tagged member stays a union."""
    members = [member for member in typing.get_args(place) if member is not types.NoneType]
    return members[0] if isinstance(place, types.UnionType) and len(members) == 1 else place
