"""The scripts in lua/, found by listing that folder, with their arguments by name.

The head of a script says what it takes:

    -- ARGV: id, delay_ms:number, queue_depth:number, events... (type, data, …)

Each name becomes a local of the script (`:number`: a number, else a string), so neither side counts positions. The one
with `...` is the rest, of any length: its local is the index in ARGV at which that begins. A name that is one of
`Limits.arguments()` need not be given in a call.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from operator import itemgetter
from types import MappingProxyType

from millstream.protocol.jobs import TERMINAL
from millstream.store import keys
from millstream.store.pipeline import Argument

_ARGV = re.compile(r"^-- ARGV: (.*(?:\n--   .*)*)$", re.MULTILINE)
_NAME = re.compile(r"(\w+)(:number|\.\.\.)?(?:,|$)")


@dataclass(frozen=True, slots=True)
class Script:
    """A script as the store runs it: the names of keys and statuses, the prelude, its arguments, its own text.

    `defaults`: the arguments that need not be given, with their values.
    """

    name: str
    text: str
    sha: str
    arguments: tuple[str, ...]
    rest: bool  # does any number of them follow?
    defaults: Mapping[str, Argument]
    _required: int
    _pick: Callable[[Mapping[str, Argument]], tuple[Argument, ...]]

    def bind(self, given: Mapping[str, Argument], rest: Iterable[Argument] = ()) -> list[Argument]:
        """ARGV. Raises TypeError for an argument that is missing, and for one that the script does not take."""
        try:
            bound = [*self._pick({**self.defaults, **given} if self.defaults else given)]
        except KeyError:
            bound = None
        # With all that are required among them, only as many as there are required can be no others.
        if bound is None or (len(given) != self._required and not given.keys() <= {*self.arguments}):
            raise TypeError(f"{self.name} takes {', '.join(self.arguments) or 'nothing'}; given: {', '.join(given)}")
        bound += rest
        if len(bound) > len(self.arguments) and not self.rest:
            raise TypeError(f"{self.name} takes only {', '.join(self.arguments)}")
        return bound


def _picker(names: tuple[str, ...]) -> Callable[[Mapping[str, Argument]], tuple[Argument, ...]]:
    """The values of these names, in this order; a call of a script is too frequent for a loop in Python."""
    match names:
        case ():
            return lambda given: ()
        case (name,):
            return lambda given: (given[name],)
        case _:
            return itemgetter(*names)


def _load(name: str, prelude: str, own: str, limits: Mapping[str, Argument]) -> Script:
    declared = _ARGV.search(own)
    listed = re.sub(r"\n--  |\(.*", " ", declared.group(1)).strip() if declared else ""
    names = _NAME.findall(listed)
    arguments = tuple(name for name, kind in names if kind != "...")
    locals_ = "".join(
        f"local {name} = {n if kind == '...' else f'tonumber(ARGV[{n}])' if kind else f'ARGV[{n}]'}\n"
        for n, (name, kind) in enumerate(names, 1)
    )
    text = f"{prelude}\n{locals_}\n{own}"
    sha = hashlib.sha1(text.encode()).hexdigest()
    defaults = {name: limits[name] for name in arguments if name in limits}
    required = len(arguments) - len(defaults)
    return Script(name, text, sha, arguments, len(arguments) < len(names), defaults, required, _picker(arguments))


def load_scripts(limits: Mapping[str, Argument] = MappingProxyType({})) -> dict[str, Script]:
    """Every script of the folder, by name. `limits`: those of `Limits.arguments()`."""
    folder = resources.files("millstream.store") / "lua"
    files = [file for file in folder.iterdir() if file.name.endswith(".lua")]
    texts = {file.name.removesuffix(".lua"): file.read_text() for file in files}
    names = "".join(f"local {name} = '{value}'\n" for name, value in keys.IN_LUA.items())
    ends = ", ".join(f"{status} = true" for status in sorted(TERMINAL))
    prelude = f"{names}local TERMINAL = {{ {ends} }}\n{texts.pop('prelude')}"
    return {name: _load(name, prelude, text, limits) for name, text in sorted(texts.items())}
