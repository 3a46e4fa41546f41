"""Code that uses a file, in the languages of its platforms, written from the contract."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.base.templates import templates
from pipeline.commands.bundle.contract import Contract
from pipeline.formats.formats import FORMATS, FormatName
from pipeline.tasks.images.preparation import LONGEST

_PLAIN = re.compile(r"[A-Za-z0-9_.:/-]+")
"""What may stand in the quotes of any language: names of ours, and nothing that ends a string."""
INTERPRETER = "1.4.1"
"""LiteRT of older apps: the last but one that has the Interpreter alone. Its makers read from the
program headers of 1.4.0 that the library lies on 16 KB (google-ai-edge/LiteRT, issue 4286)."""
GRADLE_PLUGIN, KOTLIN_PLUGIN = "8.13.0", "2.2.20"
ANDROID_ONNXRUNTIME = "1.29.0"
"""Of Android apps: all its libraries lie on 16 KB, by their program headers, and `nox -s snippets`
compiles the code with its classes and compares answers of the same version on Linux."""
MIN_SDK: dict[FormatName, int] = {"tflite": 23, "onnx": 24}
"""Android's oldest API level that the runtime of a format says it runs on."""
IOS = 17
"""The oldest iOS of packages whose contract says nothing of it; macOS 14 has the same Core ML."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file of code.

    Attributes:
        template: that it is made from.
        path: in the bundle.
        what: it is, in words.
    """

    template: str
    path: str
    what: str


_PYTHON = Source(
    template="classify.py.j2",
    path="python/classify.py",
    what="classifies photos, and checks the golden vectors",
)
_OF_MAPS = (
    Source(
        template="segment.py.j2",
        path="python/segment.py",
        what="tells the class of every pixel of photos, and checks the golden vectors",
    ),
)
"""Of files that give maps."""
_KOTLIN = (
    Source(
        template="build.gradle.kts.j2",
        path="kotlin/build.gradle.kts",
        what="Gradle: the Kotlin code and the model as an Android library",
    ),
    Source(
        template="settings.gradle.kts.j2",
        path="kotlin/settings.gradle.kts",
        what="Gradle: where the library is built alone",
    ),
    Source(
        template="gradle.properties.j2",
        path="kotlin/gradle.properties",
        what="Gradle: likewise",
    ),
    Source(
        template="AndroidManifest.xml.j2",
        path="kotlin/src/main/AndroidManifest.xml",
        what="Android: likewise",
    ),
    Source(
        template="Photo.kt.j2",
        path="kotlin/src/main/kotlin/Photo.kt",
        what="Kotlin: how a photo becomes pixels",
    ),
    Source(
        template="GoldenTest.kt.j2",
        path="kotlin/src/androidTest/kotlin/GoldenTest.kt",
        what="Kotlin: the golden vectors as a test on the device",
    ),
)
SOURCES: dict[FormatName, tuple[Source, ...]] = {
    "tflite": (
        Source(
            template="ClassifierLiteRT.kt.j2",
            path="kotlin/src/litert/kotlin/Classifier.kt",
            what="Kotlin: the classifier, with LiteRT's CompiledModel",
        ),
        Source(
            template="ClassifierInterpreter.kt.j2",
            path="kotlin/src/interpreter/kotlin/Classifier.kt",
            what="Kotlin: the same with LiteRT's Interpreter, for older apps",
        ),
        *_KOTLIN,
        _PYTHON,
    ),
    "onnx": (
        Source(
            template="ClassifierOnnx.kt.j2",
            path="kotlin/src/main/kotlin/Classifier.kt",
            what="Kotlin: the classifier, with ONNX Runtime",
        ),
        *_KOTLIN,
        Source(
            template="classifier.hpp.j2",
            path="cpp/classifier.hpp",
            what="C++17: the classifier, with ONNX Runtime",
        ),
        Source(
            template="photo.hpp.j2",
            path="cpp/photo.hpp",
            what="C++17: how a photo becomes pixels",
        ),
        Source(
            template="golden.cpp.j2",
            path="cpp/golden.cpp",
            what="C++17: a program that checks the golden vectors",
        ),
        _PYTHON,
    ),
    "coreml": (
        Source(
            template="Package.swift.j2",
            path="Package.swift",
            what="the Swift code and the model as a Swift package",
        ),
        Source(
            template="Classifier.swift.j2",
            path="swift/Classifier.swift",
            what="Swift: the classifier, with Core ML",
        ),
        Source(
            template="Photo.swift.j2",
            path="swift/Photo.swift",
            what="Swift: how a photo becomes pixels",
        ),
        Source(
            template="GoldenTests.swift.j2",
            path="swift/GoldenTests.swift",
            what="Swift: the golden vectors as a test on the device",
        ),
        _PYTHON,
    ),
}
"""What a bundle holds, by format."""


def snippets(contract: Contract, tools: Mapping[str, str]) -> dict[str, str]:
    """Every source file of a bundle and its README, by path.

    Args:
        contract: of the bundle.
        tools: versions of the packages that the file was made and checked with.

    Raises:
        ValueError: a name in the contract or a version could end a string in one of the languages,
            or a version is missing.
    """
    package = FORMATS[contract.format].package
    needed = {name: _version(tools, name) for name in ("numpy", "pillow", package)}
    names = (contract.name, contract.file, contract.input.name, contract.output.name)
    for name in (*names, *needed.values()):
        if not _PLAIN.fullmatch(name):
            raise ValueError(f"got the name {name!r}; only {_PLAIN.pattern} can stand in code")
    maps = contract.output.maps
    sources = SOURCES[contract.format] if maps is None else _OF_MAPS
    values = {
        **_of_network(contract),
        **_of_tools(contract, needed),
        "sources": [(source.path, source.what) for source in sources],
        "check": _listed([source.path for source in sources if "olden" in source.path]),
        **{form: form == contract.format for form in SOURCES},
    }
    about = "README.md.j2" if maps is None else "README_maps.md.j2"
    named = {"README.md": about, **{s.path: s.template for s in sources}}
    every = templates("pipeline.commands.bundle")
    return {path: every.get_template(name).render(values) for path, name in named.items()}


def _of_network(contract: Contract) -> dict[str, object]:
    """What the templates say of the file, of what it takes and of what it gives."""
    given, made = contract.input, contract.output
    return {
        "name": contract.name,
        "file": contract.file,
        "height": given.height,
        "width": given.width,
        "channels": given.channels,
        "order": "red, green and blue" if given.channels == 3 else "one byte",
        "cover_height": given.photo.cover_height,
        "cover_width": given.photo.cover_width,
        "interpolation": given.photo.interpolation,
        "reach": 2.0 if given.photo.interpolation == "bicubic" else 1.0,
        "background": given.photo.background,
        "longest": LONGEST,
        "classes": made.classes,
        "count": made.classes if made.maps else made.shape[-1] or made.classes,
        "maps": made.maps,
        "numbers": made.gives,
        "number": "logit" if made.gives == "logits" else "probability",
        "ready": made.gives == "probabilities",
        "by_name": made.kind == "dictionary",
        "yes_or_no": made.maps is None and made.shape[-1] == 1 and made.above is None,
        "threshold": made.threshold,
        "above": made.above,
        "things": "classes" if made.above is None else "labels",
        "tolerance": contract.golden.tolerance,
        "images": contract.golden.images,
        "photos": contract.golden.photos,
        "mean": given.mean,
        "std": given.std,
        "pixels": given.mean is None,
        "channels_last": given.layout == "NHWC",
        "dtype": given.dtype,
        "input_name": given.name,
        "output_name": made.name,
    }


def _of_tools(contract: Contract, needed: Mapping[str, str]) -> dict[str, object]:
    """What the templates say of packages; `needed` are those of Python, with their versions."""
    package = FORMATS[contract.format].package
    return {
        "python_package": package,
        "needed": [f"{name}=={version}" for name, version in needed.items()],
        "runtime_version": needed[package],
        "android_version": ANDROID_ONNXRUNTIME,
        "interpreter_version": INTERPRETER,
        "gradle_plugin": GRADLE_PLUGIN,
        "kotlin_plugin": KOTLIN_PLUGIN,
        "min_sdk": MIN_SDK.get(contract.format),
        "suffix": FORMATS[contract.format].suffix.removeprefix("."),
        "float16": contract.float16,
        "oldest": contract.oldest_runtime,
        "ios": contract.oldest_ios or IOS,
        "macos": (contract.oldest_ios or IOS) - 3,
    }


def _version(tools: Mapping[str, str], name: str) -> str:
    if name not in tools:
        raise ValueError(f"it names no version of {name}")
    return tools[name]


def _listed(paths: list[str]) -> str:
    return " or ".join(f"`{path}`" for path in paths)
