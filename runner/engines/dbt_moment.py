"""What a project can ask for while it is parsed that differs in the next run: time, invocation, flags, chance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_OF_THE_RUN = ("run_started_at", "invocation_id", "invocation_args_dict", "flags")
"""Names that Jinja gives a project, whose values are the run's own or the step's."""
_CLOCKS = {"date": ("today",), "datetime": ("now", "utcnow", "today")}
"""By class of `modules.datetime`."""
_NOTHING = object()


class _Asked(Exception):
    """Ends the parsing that asked: its outcome holds for no other run."""


@contextmanager
def noted() -> Iterator[list[str]]:
    """The names of what was asked for, while this lasts. Who asks gets no answer but an error."""
    from dbt.context import base
    from jinja2.defaults import DEFAULT_NAMESPACE
    from jinja2.filters import FILTERS
    from yaml.representer import SafeRepresenter

    asked: list[str] = []
    replaced: list[tuple[dict[Any, Any], Any, Any]] = []

    def replace(names: dict[Any, Any], name: Any, value: Any) -> None:
        replaced.append((names, name, names.get(name, _NOTHING)))
        names[name] = value

    def refusal(name: str) -> Callable[..., Any]:
        def refuse(*_: object, **__: object) -> Any:
            asked.append(name)
            raise _Asked(f"{name}: another in the next run")

        return refuse

    stand_ins = {name: _stand_in(refusal(name)) for name in _OF_THE_RUN}
    for context in _with_subclasses(base.BaseContext):
        members = context._context_members_
        for name in stand_ins.keys() & members.keys():
            replace(members, name, stand_ins[name])
    for name, stand_in in stand_ins.items():
        # `toyaml` would look at nothing and give its default.
        replace(SafeRepresenter.yaml_representers, type(stand_in), refusal(name))
    modules = base.get_datetime_module_context()
    for name, clocks in _CLOCKS.items():
        modules[name] = _Clock(modules[name], {each: refusal(f"modules.datetime.{name}.{each}") for each in clocks})
    replace(vars(base), "get_datetime_module_context", lambda: modules)
    replace(FILTERS, "random", refusal("random"))
    replace(DEFAULT_NAMESPACE, "lipsum", refusal("lipsum"))
    try:
        yield asked
    finally:
        for names, name, value in reversed(replaced):
            if value is _NOTHING:
                del names[name]
            else:
                names[name] = value


class _Clock:
    """A class of `datetime`, but for the methods that tell the time."""

    def __init__(self, of: type, clocks: dict[str, Callable[..., Any]]) -> None:
        self._of = of
        self._clocks = clocks

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._of(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        return self._clocks.get(name) or getattr(self._of, name)


_OPERATIONS = (
    *("call", "str", "repr", "format", "bool", "hash", "len", "iter", "getitem", "contains", "int", "float", "index"),
    *("eq", "ne", "lt", "le", "gt", "ge", "add", "radd", "sub", "rsub", "mul", "rmul", "mod", "rmod"),
)


def _stand_in(refuse: Callable[..., Any]) -> object:
    """A value with which nothing can be done that does not refuse; to have it does no harm."""

    def attribute(_: object, name: str) -> Any:
        # Python and Jinja look for some of their own on every value, and take it that they are not there.
        if name.startswith("__"):
            raise AttributeError(name)
        return refuse()

    return type("Asked", (), {f"__{each}__": refuse for each in _OPERATIONS} | {"__getattr__": attribute})()


def _with_subclasses(cls: Any) -> Iterator[Any]:
    yield cls
    for each in cls.__subclasses__():
        yield from _with_subclasses(each)
