"""The distribution `omnisparse-runtime`: the engine and its binding, with NumPy alone.

It is made of the sources of `espnet_omnisparse.runtime`, under the name
`omnisparse_runtime`: what goes on a device has no ESPnet to be a part of. Its shared
library knows nothing of Python, so that one wheel serves all versions of it.

    pip wheel ./runtime_dist
"""

import re
import shutil
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

NAME = "omnisparse_runtime"
here = Path(__file__).parent
package = here.parent / "espnet_omnisparse"
staged = here / "build" / "staged" / NAME

# renamed copies, since setuptools takes no files from outside; no earlier build stays
shutil.rmtree(here / "build", ignore_errors=True)
staged.mkdir(parents=True)
for path in (*package.glob("runtime/*.py"), package / "errors.py"):
    text = path.read_text(encoding="utf-8")
    text = text.replace("from espnet_omnisparse import runtime", f"import {NAME}")
    text = text.replace("runtime.load(", f"{NAME}.load(")
    text = text.replace("espnet_omnisparse.runtime", NAME)
    text = text.replace("espnet_omnisparse.errors", f"{NAME}.errors")
    (staged / path.name).write_text(text, encoding="utf-8")
shutil.copytree(package / "runtime" / "csrc", staged / "csrc")
shutil.copy(here.parent / "LICENSE", here / "LICENSE")

init = (package / "__init__.py").read_text(encoding="utf-8")
csrc = staged.relative_to(here) / "csrc"


class PlainLibrary(build_ext):
    """A library without a Python version in its name."""

    def get_ext_filename(self, fullname: str) -> str:
        """`NAME/omnisparse_engine.so`."""
        return str(Path(*fullname.split("."))) + ".so"


class AnyPython(bdist_wheel):
    """A wheel of one platform and any Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        """`py3-none-PLATFORM`."""
        return ("py3", "none", super().get_tag()[2])


setup(
    name="omnisparse-runtime",
    version=re.search(r'^__version__ = "(.+)"$', init, re.MULTILINE).group(1),
    description="Runs packed speech recognisers of espnet-omnisparse, with NumPy alone",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    install_requires=["numpy"],
    packages=[NAME],
    package_dir={NAME: str(staged.relative_to(here))},
    ext_modules=[
        Extension(
            f"{NAME}.omnisparse_engine",
            sources=sorted(
                str(csrc / path.relative_to(staged / "csrc"))
                for path in (staged / "csrc" / "src").rglob("*.cpp")
            ),
            include_dirs=[str(csrc / "include")],
            extra_compile_args=[
                "-std=c++17",
                "-O3",
                "-g0",
                "-fvisibility=hidden",
                "-pthread",
            ],
            extra_link_args=["-pthread", "-s"],
            language="c++",
        )
    ],
    cmdclass={"build_ext": PlainLibrary, "bdist_wheel": AnyPython},
)
