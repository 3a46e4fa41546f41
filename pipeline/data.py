"""Datasets of a recipe: loading, fixed splits, fingerprints and batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pipeline.errors import InputError
from pipeline.image_cache import kept_or_decoded
from pipeline.images import (
    Images,
    augment_as,
    by_policy,
    class_differences,
    decode,
    draw_changes,
    fits_in_memory,
    margin_of,
    middle,
    normalize,
    random_parts,
    scan_folder,
)
from pipeline.recipe import (
    AugmentConfig,
    CifarData,
    DataConfig,
    DigitsData,
    ImageFolderData,
    name_fault,
)

__all__ = [
    "Dataset",
    "Images",
    "batches",
    "decoded",
    "draw_stratified",
    "load_dataset",
    "mean_and_std",
    "normalize",
    "pixel_values",
]

_DIGITS_TEST = 450
_DIGITS_MEAN, _DIGITS_STD = 0.305, 0.376
# Per channel over the 50,000 training images, scale 0 to 1.
_CIFAR_MEAN_STD = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
_LAYOUT = "train/<class>/ and test/<class>/ (or val/<class>/)"
_CIFAR_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"

Triple = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """A dataset as the pipeline uses it.

    Attributes:
        name: digits, image_folder, cifar10 or cifar100.
        classes: class names in the order of the labels.
        train: images to train on; none of them is in `calibration`.
        calibration: images that set activation ranges, classes mixed, in a fixed order.
        tests: test sets by name.
        mean: per channel, scale 0 to 1.
        std: per channel, scale 0 to 1.
        sha256: of class names, labels and image content of every set, in order. Pixels count
            as stored (before any resize), files by their bytes.
        notes: what the user is to know about the loading, a line each.
    """

    name: str
    classes: tuple[str, ...]
    train: Images
    calibration: Images
    tests: dict[str, Images]
    mean: Triple
    std: Triple
    sha256: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Share:
    """Some of the nearly equal parts of every batch.

    Attributes:
        parts: of a batch, all together.
        first: of those that are meant.
        number: of those that are meant.
    """

    parts: int = 1
    first: int = 0
    number: int = 1

    def of(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The parts of the rows of a batch."""
        return rows.tensor_split(self.parts)[self.first : self.first + self.number]


WHOLE = Share()


def load_dataset(
    config: DataConfig, input_size: int, seed: int = 0, cache: Path | None = None
) -> Dataset:
    """Load the data of a recipe; the same arguments give the same dataset, image by image.

    Args:
        config: the recipe's `data`.
        input_size: side of the delivered images in pixels.
        seed: picks which training images calibrate. Test sets never depend on it.
        cache: directory that keeps the decoded images of folders for later runs. Without it they
            are decoded in every run.

    Raises:
        InputError: data is missing, unreadable or does not fit together.
    """
    if config.kind == "digits":
        return _load_digits(config, input_size, seed)
    if config.kind == "image_folder":
        return _load_folders(config, input_size, seed, cache)
    return _load_cifar(config, input_size, seed)


def batches(
    images: Images,
    batch_size: int,
    dataset: Dataset,
    *,
    augment_config: AugmentConfig | None = None,
    generator: torch.Generator | None = None,
    order: Tensor | None = None,
    share: Share = WHOLE,
    place: torch.device | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of normalised batches: float32 [B, 3, S, S] and int64 [B].

    Without a generator the images come in their own order, for evaluation. With one (on the
    CPU) they are shuffled, for training; a last batch of a single image (of less than two in
    every part) is then left out, because batch norm needs two.

    Args:
        images: a set of `dataset`.
        batch_size: images per batch; the last batch may be shorter.
        dataset: gives mean and standard deviation.
        augment_config: its crop and policy are applied to the pixels, the rest after
            normalisation; needs a generator.
        generator: source of the order and of the augmentation.
        order: int64 [M], which images come, and in what order; drawn where left out.
        share: the parts of every batch that come, one after the other, in place of all of it.
            Whoever else takes another share draws the same numbers from an equal generator.
        place: where the images come to be; they go there as bytes, and all but `crop` and `policy`
            is done there. Labels stay on the CPU.

    Raises:
        ValueError: `augment_config` without `generator`, or a batch size below 1.
    """
    if augment_config is not None and generator is None:
        raise ValueError("augment_config needs a generator; pass both or neither")
    if batch_size < 1:
        raise ValueError(f"batch_size: got {batch_size}; must be >= 1")
    place = place or torch.device("cpu")
    return _batches(images, batch_size, dataset, augment_config, generator, order, share, place)


def _batches(
    images: Images,
    batch_size: int,
    dataset: Dataset,
    augment_config: AugmentConfig | None,
    generator: torch.Generator | None,
    order: Tensor | None,
    share: Share,
    place: torch.device,
) -> Iterator[tuple[Tensor, Tensor]]:
    shuffled = generator is not None
    if order is None:
        count = len(images)
        order = torch.randperm(count, generator=generator) if shuffled else torch.arange(count)
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        if shuffled and len(indices) < 2 * share.parts:
            return
        changes = None
        if augment_config is not None and generator is not None:
            changes = draw_changes(len(indices), augment_config, generator)
        for part in share.of(torch.arange(len(indices))):
            if augment_config is not None and augment_config.crop is not None:
                whole = images.with_margin(indices[part])
                pixels = random_parts(whole, augment_config.crop, images.size)
            else:
                pixels = images.pixels(indices[part])
            if augment_config is not None and augment_config.policy is not None:
                pixels = by_policy(pixels, augment_config.policy)
            x = normalize(pixels.to(place), dataset.mean, dataset.std)
            if augment_config is not None and changes is not None:
                x = augment_as(x, augment_config, changes[:, part])
            yield x, images.labels[indices[part]]


def decoded(config: DataConfig, content: bytes, file: Path, size: int) -> Tensor:
    """An image file's content as the images of a recipe are: uint8 [3, size, size].

    Raises:
        InputError: `content` is not an image that can be decoded; `file` is named.
    """
    margin = margin_of(size, config.crop_pct) if config.kind == "image_folder" else 0
    return middle(torch.tensor(decode(content, file, size + 2 * margin)), size)


def mean_and_std(config: DataConfig) -> tuple[Triple, Triple]:
    """What `load_dataset` normalises the images of a recipe by, per channel, scale 0 to 1."""
    if config.kind == "digits":
        return (_DIGITS_MEAN,) * 3, (_DIGITS_STD,) * 3
    if config.kind == "image_folder":
        return config.mean, config.std
    return _CIFAR_MEAN_STD[config.kind]


def pixel_values(dataset: Dataset) -> Dataset:
    """The same dataset with batches of plain pixel values 0..255, as a camera gives them.

    They are floats that miss the whole number by 2e-5 at most.
    """
    return replace(dataset, mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))


def draw_stratified(labels: Tensor, count: int, seed: int) -> Tensor:
    """Indices of `count` images, drawn from the classes in proportion to what they can spare.

    A class of n images can spare n - 1, so no class is used up. Rounding is by largest
    remainder. The result, int64 [count], is in mixed order.

    Args:
        labels: int64 [N].
        count: 0 to N minus the number of classes.
        seed: the same seed gives the same draw.

    Raises:
        ValueError: more images are asked for than the classes can spare.
    """
    generator = torch.Generator().manual_seed(seed)
    spare = (torch.bincount(labels) - 1).clamp(min=0)
    total = int(spare.sum())
    if count > total:
        raise ValueError(f"count: got {count}; at most {total} can be drawn")
    quota = count * spare // max(total, 1)
    remainder = count * spare % max(total, 1)
    leftover = count - int(quota.sum())
    quota[remainder.argsort(descending=True, stable=True)[:leftover]] += 1
    picks = []
    for label, number in enumerate(quota.tolist()):
        members = (labels == label).nonzero().flatten()
        picks.append(members[torch.randperm(len(members), generator=generator)[:number]])
    drawn = torch.cat(picks)
    return drawn[torch.randperm(len(drawn), generator=generator)]


def _others(count: int, drawn: Tensor) -> Tensor:
    left = torch.ones(count, dtype=torch.bool)
    left[drawn] = False
    return left.nonzero().flatten()


def _split_calibration(labels: Tensor, wanted: int, seed: int, where: str) -> tuple[Tensor, Tensor]:
    """Indices of the images to train on and of those that calibrate."""
    classes = int((torch.bincount(labels) > 0).sum())
    most = len(labels) - classes
    if wanted > most:
        raise InputError(
            f"data.calibration_images: got {wanted}; {where} has {len(labels)} images in "
            f"{classes} classes and keeps one of each for training, so at most {most}; "
            "lower it or add images"
        )
    drawn = draw_stratified(labels, wanted, seed)
    return _others(len(labels), drawn), drawn


def _fingerprint(
    classes: Sequence[str], sets: Mapping[str, Images], digests: Mapping[str, Sequence[bytes]]
) -> str:
    whole = hashlib.sha256(json.dumps(list(classes)).encode())
    for name, images in sets.items():
        whole.update(json.dumps([name, images.labels.tolist()]).encode())
        for digest in digests[name]:
            whole.update(digest)
    return whole.hexdigest()


def _array_dataset(
    name: str, classes: Sequence[str], sets: Mapping[str, Images], mean: Triple, std: Triple
) -> Dataset:
    """A dataset of images in memory; `sets` holds train, calibration and test, unresized."""
    digests, size = {}, sets["train"].size
    if fits_in_memory(sum(len(images) for images in sets.values()), size):
        delivered = {key: images.resized() for key, images in sets.items()}
    else:
        delivered = dict(sets)
    for key, images in sets.items():
        assert isinstance(images.source, Tensor)
        stored = images.source.numpy()
        rows = range(len(images)) if images.rows is None else images.rows.tolist()
        digests[key] = [hashlib.sha256(stored[row].tobytes()).digest() for row in rows]
    return Dataset(
        name=name,
        classes=tuple(classes),
        train=delivered["train"],
        calibration=delivered["calibration"],
        tests={"test": delivered["test"]},
        mean=mean,
        std=std,
        sha256=_fingerprint(classes, sets, digests),
    )


def _load_digits(config: DigitsData, size: int, seed: int) -> Dataset:
    # scikit-learn takes a second to import, and only this dataset needs it.
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = torch.from_numpy(digits.images)  # 1,797 images of 8 x 8, values 0 to 16
    pixels = (grey * 255 / 16).round().to(torch.uint8)[:, None].repeat(1, 3, 1, 1)
    if config.tile is not None:
        pixels = _tiled(pixels, config.tile, size)
    labels = torch.from_numpy(digits.target).to(torch.int64)
    images = Images(labels=labels, size=size, source=pixels)
    tested = draw_stratified(labels, _DIGITS_TEST, seed=0).sort().values
    rest = images.take(_others(len(images), tested))
    left, drawn = _split_calibration(rest.labels, config.calibration_images, seed, "digits")
    test = images.take(tested[: config.test_images])
    sets = {"train": rest.take(left), "calibration": rest.take(drawn), "test": test}
    classes = [str(digit) for digit in range(10)]
    return _array_dataset("digits", classes, sets, *mean_and_std(config))


def _tiled(pixels: Tensor, tile: int, size: int) -> Tensor:
    """Images (images, 3, 8, 8) as parts of sheets on which each is repeated.

    Drawn `size` pixels wide, a sheet shows an image `tile` pixels wide.
    """
    shown, rest = divmod(pixels.shape[-1] * size, tile)
    if rest:
        raise InputError(
            f"data.tile: got {tile}; {pixels.shape[-1]} times model.input_size ({size}) must be a "
            "multiple of it"
        )
    times = -(-shown // pixels.shape[-1])
    return pixels.repeat(1, 1, times, times)[:, :, :shown, :shown].contiguous()


def _load_cifar(config: CifarData, size: int, seed: int) -> Dataset:
    # torchvision takes seconds to import, and only these two datasets need it.
    from torchvision import datasets  # type: ignore[import-untyped]

    source = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[config.kind]
    folder = Path(config.path) / source.base_folder
    by_hand = f"unpack {source.filename} from {_CIFAR_PAGE} in {config.path}"
    try:
        parts = [source(config.path, train=True, download=config.download)]
        parts += [source(config.path, train=False)]
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        if config.download:
            raise InputError(
                f"data.download: could not fetch {source.url} ({reason}); "
                f"check the network, or {by_hand}"
            ) from error
        # torchvision gives one message for absent and for damaged files.
        state = "its files are incomplete or damaged" if folder.is_dir() else "no such folder"
        raise InputError(
            f"data.path: looked for {config.kind} in {folder}: {state}; "
            f"set data.download: true, or {by_hand}"
        ) from error
    whole, test = (
        Images(
            labels=torch.tensor(part.targets, dtype=torch.int64),
            size=size,
            source=torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(),
        )
        for part in parts
    )
    where = f"the training set of {config.kind}"
    left, drawn = _split_calibration(whole.labels, config.calibration_images, seed, where)
    sets = {"train": whole.take(left), "calibration": whole.take(drawn), "test": test}
    return _array_dataset(config.kind, parts[0].classes, sets, *mean_and_std(config))


def _folders(config: ImageFolderData) -> tuple[Path, dict[str, Path]]:
    """Where the training images are, and every test set."""
    if config.path is None:
        assert config.train is not None  # the recipe's types see to it
        assert config.test is not None
        return Path(config.train), {name: Path(path) for name, path in config.test.items()}
    path, train = Path(config.path), Path(config.path) / "train"
    if not path.is_dir():
        state = "is not a folder" if path.exists() else "does not exist"
        raise InputError(f"data.path: {path} {state}; give a folder that holds {_LAYOUT}")
    inside = sorted(entry for entry in path.iterdir() if entry.is_dir())
    tests = {entry.name: entry for entry in inside if entry.name.startswith(("test", "val"))}
    for name, folder in tests.items():
        if (why_not := name_fault(name)) is not None:
            raise InputError(f"data.path: {folder}: the name of a test set's folder {why_not}")
    if not train.is_dir() or not tests:
        folders = ", ".join(entry.name for entry in inside[:10]) or "no folder"
        raise InputError(
            f"data.path: {path} holds {folders}; it must hold {_LAYOUT}, or data.train and "
            "data.test say where they are"
        )
    return train, tests


def _load_folders(config: ImageFolderData, size: int, seed: int, cache: Path | None) -> Dataset:
    train, tests = _folders(config)
    roots = {"data.train": train} | {f"data.test.{name}": path for name, path in tests.items()}
    found, problems = {}, []
    for key, root in roots.items():
        found[key], complaints = scan_folder(key, root)
        problems += complaints
    classes = list(found["data.train"])
    if classes:
        for key, files in found.items():
            problems += class_differences(key, set(files), set(classes))
    if problems:
        raise InputError("\n".join(problems))

    margin = margin_of(size, config.crop_pct)
    sets = {key: _as_images(files, size, margin) for key, files in found.items()}
    where = f"data.train ({train})"
    labels = sets["data.train"].labels
    left, drawn = _split_calibration(labels, config.calibration_images, seed, where)
    sets, digests, notes = _read(roots, sets, size + 2 * margin, cache)
    whole, all_digests = sets.pop("data.train"), digests.pop("data.train")
    for key, rows in {"calibration": drawn, "train": left}.items():
        digests[key] = [all_digests[row] for row in rows.tolist()]
    sets = {"train": whole.take(left), "calibration": whole.take(drawn), **sets}
    mean, std = mean_and_std(config)
    return Dataset(
        name=config.kind,
        classes=tuple(classes),
        train=sets["train"],
        calibration=sets["calibration"],
        tests={name: sets[f"data.test.{name}"] for name in tests},
        mean=mean,
        std=std,
        sha256=_fingerprint(classes, sets, digests),
        notes=notes,
    )


def _as_images(files: Mapping[str, Sequence[Path]], size: int, margin: int) -> Images:
    counts = torch.tensor([len(group) for group in files.values()])
    return Images(
        labels=torch.arange(len(counts)).repeat_interleave(counts),
        size=size,
        source=tuple(file for group in files.values() for file in group),
        margin=margin,
    )


def _read(
    roots: Mapping[str, Path], sets: Mapping[str, Images], side: int, cache: Path | None
) -> tuple[dict[str, Images], dict[str, list[bytes]], tuple[str, ...]]:
    """The sets, decoded where there is room for them; the digest of every file; notes."""
    in_memory = fits_in_memory(sum(len(images) for images in sets.values()), side)
    read, digests, problems, notes = {}, {}, [], []
    for key, images in sets.items():
        assert isinstance(images.source, tuple)
        try:
            kept = kept_or_decoded(roots[key], images.source, side, cache, in_memory=in_memory)
        except InputError as error:
            problems.append(str(error))
            continue
        read[key], digests[key] = replace(images, source=kept.source), kept.digests
        notes += [kept.note] if kept.note else []
    if problems:
        raise InputError("\n".join(problems))
    return read, digests, tuple(notes)
