"""The images that a recipe asks for."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from pipeline.base.record import Share
from pipeline.recipe.values import NAME, Deviation, FileName, Part, PathOnDisk, Side

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
Interpolation = Literal["bilinear", "bicubic"]
Aspect = Literal["crop", "stretch", "pad"]
Level = Annotated[int, Field(ge=0, le=255)]
Colour = tuple[Level, Level, Level]
"""Red, green and blue."""
WHITE = (255, 255, 255)
LABEL = "cls, folder, or json: and the name of a field"
PHOTOS = ("image_folder", "webdataset", "coco", "voc", "mask_folder")
"""Kinds of data that are photos on a disk."""


class DigitsData(Part):
    """scikit-learn's 8 x 8 handwritten digits, 1,797 images, inside the package: works offline.

    Attributes:
        kind: of the data.
        tile: draws a digit that many pixels wide, and again beside and below itself until the
            image is full; without it one digit fills the image.
        test_images: below 450, the first of them only, where accuracy is not the question.
        calibration_images: images taken out of the training images to calibrate on.
    """

    kind: Literal["digits"] = "digits"
    tile: Side | None = None
    test_images: Annotated[int, Field(ge=1, le=450)] = 450
    calibration_images: Annotated[int, Field(ge=1, le=1000)] = 180


class PhotoData(Part):
    """Photos on a disk, as all of their kinds have them.

    Attributes:
        kind: of the data.
        path: folder that holds all of them, in place of `train` and `test`.
        classes: text file with the name of a class in every line, in the order of the outputs.
        calibration: the images to calibrate on, in place of some of `train`.
        train: the training images.
        test: the images of every test set, by the name the report uses.
        calibration_images: images to calibrate on.
        crop_pct: side of the square that is cut from an image's middle.
        interpolation: how photos are scaled.
        background: under transparent pictures.
        damaged: what becomes of image files that cannot be decoded.
        damaged_share: of a set's files, that `damaged: skip` may leave out at most.
        workers: processes that decode the next images; decides no result.
        mean: of the red, green and blue channel, pixels as shares 0..1.
        std: likewise.
    """

    kind: Literal["image_folder", "webdataset", "coco", "voc", "mask_folder"]
    path: PathOnDisk | None = None
    classes: PathOnDisk | None = None
    calibration: PathOnDisk | None = None
    train: PathOnDisk | None = None
    test: Annotated[dict[FileName, PathOnDisk], Field(min_length=1, description=NAME)] | None = None
    calibration_images: Annotated[int, Field(ge=1)] = 256
    crop_pct: Annotated[float, Field(ge=0.5, le=1)] = 1.0
    interpolation: Interpolation = "bilinear"
    background: Annotated[Colour, Field(strict=False)] = WHITE
    damaged: Literal["refuse", "skip"] = "refuse"
    damaged_share: Share = 0.01
    workers: Annotated[int, Field(ge=0, le=256)] | None = None
    mean: Annotated[tuple[Share, Share, Share], Field(strict=False)] = IMAGENET_MEAN
    std: Annotated[tuple[Deviation, Deviation, Deviation], Field(strict=False)] = IMAGENET_STD

    @field_validator("train", "test")
    @classmethod
    def _once(cls, value: object, info: ValidationInfo) -> object:
        if "path" not in info.data:
            return value
        if value is None and info.data["path"] is None:
            given = (info.data.get("classes"), info.data.get("calibration"))
            if info.field_name == "train" and None not in given:
                return value
            raise PydanticCustomError("missing", "Field required")
        if value is not None and info.data["path"] is not None:
            raise ValueError("data.path says where the images are; remove one of them")
        return value

    @property
    def trains(self) -> bool:
        """Whether there are images to train on."""
        return self.path is not None or self.train is not None


class ImageFolderData(PhotoData):
    """Folders with one subfolder of images per class, or with a table of the labels of images.

    Attributes:
        kind: of the data.
        path: folder that holds all of them, in place of `train` and `test`: the training images in
            `train`, and a test set in every folder whose name begins with test or val.
        classes: text file with the name of a class in every line, in the order of the network's
            outputs. Folders may then lack some of the classes; without it the folders of `train`
            are the classes. Or with the name of a label in every line.
        labels: table of the labels of all images, where an image may have several; without it
            the file labels.csv in `path`, or else one in every folder of images.
        calibration: folder of the images to calibrate on, in class folders or not, in place of
            some of `train`.
        train: folder of the training images; may be left out beside `calibration` and `classes`,
            where nothing is trained.
        test: folder of every test set, by the name the report uses.
        calibration_images: images to calibrate on, drawn from `calibration` (or all of it, where
            it holds fewer), or else taken out of `train`.
        crop_pct: side of the square that is cut from an image's middle, as a share of the image's
            shorter side: 0.875 is 224 of 256 pixels. `augment.crop` takes its random parts from
            what lies around that square, too.
        interpolation: how photos are scaled, with averaging where they become smaller: bilinear or
            bicubic, as the weights were trained.
        background: red, green and blue, 0 to 255, that transparent pictures are laid on.
        damaged: what becomes of image files that cannot be decoded. refuse names them and stops;
            skip leaves them out, and the report counts them.
        damaged_share: of a folder's files, that `damaged: skip` may leave out at most.
        workers: processes that decode the next images while the network works on these, where they
            are not kept decoded; decides no result. null is one for every core, 16 at most.
        mean: of the red, green and blue channel, pixels as shares 0..1.
        std: likewise. Where a recipe does not say `crop_pct`, `interpolation`, `mean` or `std`, a
            network of torchvision or timm takes those of its published weights.
    """

    kind: Literal["image_folder"] = "image_folder"
    labels: PathOnDisk | None = None


class WebDatasetData(PhotoData):
    """WebDataset shards: tar archives in which an image and its label lie side by side.

    Attributes:
        kind: of the data.
        path: folder that holds all of them, in place of `train` and `test`: the training shards in
            `train`, and a test set in every folder whose name begins with test or val.
        classes: text file with the name of a class in every line, in the order of the network's
            outputs. Labels that are whole numbers count its lines from 0, unless a name in it is a
            number; others are names in it. Sets may then lack some of the classes; without it the
            labels of `train` are the classes, in the order of the numbers or else by name.
        calibration: shards of the images to calibrate on, with labels or not, in place of some of
            `train`.
        train: shards of the training images: a folder of .tar files, one .tar file, or several by
            a * in their name; may be left out beside `calibration` and `classes`, where nothing is
            trained.
        test: shards of every test set, by the name the report uses.
        label: what says the class of an image. cls: the member of its sample that ends in .cls, a
            whole number or a name. folder: the folder that the image lies in. json:FIELD: that
            field of the member that ends in .json.
        calibration_images: images to calibrate on, drawn from `calibration` (or all of it, where
            it holds fewer), or else taken out of `train`.
        crop_pct: side of the square that is cut from an image's middle, as a share of the image's
            shorter side: 0.875 is 224 of 256 pixels. `augment.crop` takes its random parts from
            what lies around that square, too.
        interpolation: how photos are scaled, with averaging where they become smaller: bilinear or
            bicubic, as the weights were trained.
        background: red, green and blue, 0 to 255, that transparent pictures are laid on.
        damaged: what becomes of images that cannot be decoded. refuse names them and stops;
            skip leaves them out, and the report counts them.
        damaged_share: of a set's files, that `damaged: skip` may leave out at most.
        workers: processes that decode the next images while the network works on these, where they
            are not kept decoded; decides no result. null is one for every core, 16 at most.
        mean: of the red, green and blue channel, pixels as shares 0..1.
        std: likewise. Where a recipe does not say `crop_pct`, `interpolation`, `mean` or `std`, a
            network of torchvision or timm takes those of its published weights.
    """

    kind: Literal["webdataset"] = "webdataset"
    label: Annotated[str, Field(pattern=r"^(?:cls|folder|json:.{1,100})$", description=LABEL)] = (
        "cls"
    )


class CocoData(PhotoData):
    """Folders of images whose objects stand in JSON, as COCO has it.

    Attributes:
        kind: of the data.
        path: folder that holds all of them, in place of `train` and `test`: the training images in
            `train`, and a test set in every folder whose name begins with test or val. Each holds
            annotations.json (or one JSON file of another name), and images in it or in a folder.
        classes: text file with the name of a class in every line, in the order of the network's
            outputs. Without it the categories of the training annotations,
            in the order of their ids, which may be any.
        calibration: folder of the images to calibrate on, with annotations or not, in place of some
            of `train`.
        train: folder of the training images, with their annotations; may be left out beside
            `calibration` and `classes`, where nothing is trained.
        test: folder of every test set, by the name the report uses.
        calibration_images: images to calibrate on, drawn from `calibration` (or all of it, where
            it holds fewer), or else taken out of `train`.
        crop_pct: 1: nothing is cut off.
        aspect: how photos of other proportions than the network's images become those: stretch
            scales height and width each by its own factor; pad scales both alike and fills the rest
            with `background`, the photo in the middle.
        interpolation: how photos are scaled, with averaging where they become smaller: bilinear or
            bicubic, as the weights were trained.
        background: red, green and blue, 0 to 255, that transparent pictures are laid on, and of
            what `pad` fills.
        damaged: what becomes of image files that cannot be decoded. refuse names them and stops;
            skip leaves them out, and the report counts them.
        damaged_share: of a folder's files, that `damaged: skip` may leave out at most.
        workers: processes that decode the next images while the network works on these, where they
            are not kept decoded; decides no result. null is one for every core, 16 at most.
        mean: of the red, green and blue channel, pixels as shares 0..1.
        std: likewise.
    """

    kind: Literal["coco"] = "coco"
    crop_pct: Annotated[float, Field(ge=1, le=1)] = 1.0
    aspect: Literal["stretch", "pad"] = "stretch"


class VocData(PhotoData):
    """Folders of images whose objects stand in XML files, as Pascal VOC has it.

    Attributes:
        kind: of the data.
        path: folder that holds all of them, in place of `train` and `test`: the training images in
            `train`, and a test set in every folder whose name begins with test or val. Each holds
            Annotations with a NAME.xml for every image NAME, and the images in any folder.
        classes: text file with the name of a class in every line, in the order of the network's
            outputs. Without it those of the training annotations, by name.
        calibration: folder of the images to calibrate on, with annotations or not, in place of some
            of `train`.
        train: folder of the training images, with their annotations; may be left out beside
            `calibration` and `classes`, where nothing is trained.
        test: folder of every test set, by the name the report uses.
        calibration_images: images to calibrate on, drawn from `calibration` (or all of it, where
            it holds fewer), or else taken out of `train`.
        crop_pct: 1: nothing is cut off.
        aspect: how photos of other proportions than the network's images become those: stretch
            scales height and width each by its own factor; pad scales both alike and fills the rest
            with `background`, the photo in the middle.
        interpolation: how photos are scaled, with averaging where they become smaller: bilinear or
            bicubic, as the weights were trained.
        background: red, green and blue, 0 to 255, that transparent pictures are laid on, and of
            what `pad` fills.
        damaged: what becomes of image files that cannot be decoded. refuse names them and stops;
            skip leaves them out, and the report counts them.
        damaged_share: of a folder's files, that `damaged: skip` may leave out at most.
        workers: processes that decode the next images while the network works on these, where they
            are not kept decoded; decides no result. null is one for every core, 16 at most.
        mean: of the red, green and blue channel, pixels as shares 0..1.
        std: likewise.
    """

    kind: Literal["voc"] = "voc"
    crop_pct: Annotated[float, Field(ge=1, le=1)] = 1.0
    aspect: Literal["stretch", "pad"] = "stretch"


class MaskFolderData(PhotoData):
    """Folders of images, each with a mask of the same name that says the class of every pixel.

    Attributes:
        kind: of the data.
        path: folder that holds all of them, in place of `train` and `test`: the training images in
            `train/images` and their masks in `train/masks`, and a test set in every folder whose
            name begins with test or val.
        classes: text file with the name of a class in every line: the first is that of the pixel
            value 0. null is the file classes.txt in `path`.
        void: pixel value of masks that says no class: it counts neither in the loss nor in the
            metric. Where the file of classes names it, the network has no output for it.
        calibration: folder of the images to calibrate on, in place of some of `train`; they need
            no masks.
        train: folder of the training images, in `images`, and of their masks, in `masks`; may be
            left out beside `calibration` and `classes`, where nothing is trained.
        test: folder of every test set, by the name the report uses.
        calibration_images: images to calibrate on, drawn from `calibration` (or all of it, where
            it holds fewer), or else taken out of `train`.
        crop_pct: 1: masks lie on images to their borders.
        interpolation: how images are scaled, with averaging where they become smaller; masks are
            scaled alike, each pixel to the class of the nearest.
        background: red, green and blue, 0 to 255, that transparent pictures are laid on.
        damaged: what becomes of images that cannot be decoded. refuse names them and stops;
            skip leaves them out, and the report counts them.
        damaged_share: of a folder's files, that `damaged: skip` may leave out at most.
        workers: processes that decode the next images while the network works on these, where they
            are not kept decoded; decides no result. null is one for every core, 16 at most.
        mean: of the red, green and blue channel, pixels as shares 0..1.
        std: likewise.
    """

    kind: Literal["mask_folder"] = "mask_folder"
    crop_pct: Annotated[float, Field(ge=1, le=1)] = 1.0
    void: Level | None = None


class DigitScenesData(Part):
    """scikit-learn's handwritten digits, several on a canvas: offline, of any input size.

    A pixel is of the background or of a digit, and every digit has a box. They overlap nowhere.

    Attributes:
        kind: of the data.
        train_images: scenes to train on.
        test_images: scenes of the test set, drawn with digits that no other scene has.
        calibration_images: scenes to calibrate on, beside those to train on.
    """

    kind: Literal["digit_scenes"] = "digit_scenes"
    train_images: Annotated[int, Field(ge=2, le=100_000)] = 1000
    test_images: Annotated[int, Field(ge=1, le=100_000)] = 200
    calibration_images: Annotated[int, Field(ge=1, le=10_000)] = 100


class CifarData(Part):
    """CIFAR-10 or CIFAR-100.

    Attributes:
        kind: of the data.
        path: folder that holds the unpacked files.
        download: fetch them where they are not there.
        calibration_images: images taken out of the training images to calibrate on.
    """

    kind: Literal["cifar10", "cifar100"]
    path: PathOnDisk
    download: bool = False
    calibration_images: Annotated[int, Field(ge=1)] = 256


Photos = ImageFolderData | WebDatasetData | CocoData | VocData | MaskFolderData
DataConfig = Annotated[
    DigitsData | Photos | CifarData | DigitScenesData, Field(discriminator="kind")
]
