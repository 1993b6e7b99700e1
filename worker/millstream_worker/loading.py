"""Which analyses a worker runs: those of installed packages, and those of the modules and files in its settings."""

import sys
import sysconfig
import traceback
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from millstream.authoring.analysis import Analysis, find_analyses

GROUP = "millstream.analyses"


def load_analyses(named: str) -> dict[str, Analysis]:
    """The analyses of the entry-point group `millstream.analyses`, and of what `named` lists, separated by commas:
    modules (`package.module`) and files (`./analyses.py`). Modules of the current directory are found after all others.

    Raises ImportError for what is not there or cannot be imported, whatever its code raises, TypeError for what cannot
    be an analysis or for a name given twice.
    """
    put_current_directory_last()
    found: dict[str, Analysis] = {}
    names = [entry.value for entry in entry_points(group=GROUP)]
    names += [name.strip() for name in named.split(",") if name.strip()]
    for name in dict.fromkeys(names):
        for key, analysis in find_analyses(_load(name)).items():
            if found.get(key, analysis) is not analysis:
                raise TypeError(f"{name}: an analysis called {key!r} is already there, from another module.")
            found[key] = analysis
    if not found:
        raise TypeError("There are no analyses to run: name modules with MILLSTREAM_ANALYSES.")
    return found


def put_current_directory_last() -> None:
    """So that a user's modules are found, and none of them hides a module of a package."""
    here = str(Path.cwd())
    sys.path[:] = [place for place in sys.path if place not in ("", here)] + [here]


def _load(name: str) -> ModuleType:
    if name.endswith(".py"):
        return _load_file(Path(name))
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):  # not one that the module itself imports
            raise ImportError(
                f"There is no module {name!r} in {', '.join(_places())}. A file is named by its path: ./my_analyses.py"
            ) from None
        raise ImportError(f"{name}: {error}") from error
    except TypeError:
        raise  # says which function it is about
    except (Exception, SystemExit) as error:
        raise _in_words(name, error) from error


def _in_words(name: str, error: BaseException) -> Exception:
    """What went wrong in a user's module, and where."""
    if isinstance(error, ImportError):
        return ImportError(f"{name}: {error}")
    where = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")][-1]
    at = "" if isinstance(error, SyntaxError) else f" ({where.filename}, line {where.lineno})"  # it says so itself
    return ImportError(f"{name}: {type(error).__name__}: {error}{at}")


def _load_file(path: Path) -> ModuleType:
    """Import a file as the module of its name; the modules beside it are found too, after all others."""
    path = path.absolute()
    known = sys.modules.get(path.stem)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known
    if known is not None:
        raise ImportError(f"{path}: another module is called {path.stem!r}. Give the file another name.")
    spec = spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ImportError(f"There is no file {path}.")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    module = sys.modules[path.stem] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[path.stem]
        if isinstance(error, TypeError | KeyboardInterrupt):
            raise
        raise _in_words(str(path), error) from error
    return module


def _places() -> list[str]:
    """Where a user's modules are looked for: the path without the standard library."""
    standard = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
    return [place for place in sys.path if place not in standard and not place.endswith((".zip", "lib-dynload"))]
