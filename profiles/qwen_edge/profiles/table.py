"""Take typed settings out of a TOML table and note every problem on the way.

A setting is a value with its reason, `KEY = {value = …, reason = "…"}`, and for devices whether
anybody measured it, `measured = false`. A person's own file may leave both out. Nothing here
raises for bad content: problems are collected in one list, so that a file is refused once with
all of them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from qwen_edge.errors import UsageError, did_you_mean, join_problems


@dataclass(frozen=True)
class Setting:
    """One value and why it is so.

    Args:
        value: As the file has it.
        reason: In one sentence.
        is_measured: True where a run of this project on that kind of device stands behind the
            value, False where only documents do, None where nobody says.
    """

    value: object
    reason: str
    is_measured: bool | None = None


@dataclass(frozen=True)
class TableReader:
    """Reads the settings of one TOML table.

    Args:
        table: The parsed table.
        where: Prefix of messages, for example "devices CPU: ", or an empty text.
        default_reason: Reason of plain values; None when every value needs its own.
        problems: Collects one sentence per problem. Shared between the readers of a file.
        takes_measured: Whether a value may say `measured = …` here.
        is_measured: What holds for values that do not say it.

    State:
        Only appends to `problems`.
    """

    table: Mapping[str, object]
    where: str
    default_reason: str | None
    problems: list[str]
    takes_measured: bool = False
    is_measured: bool | None = None

    def check_keys(self, known: Iterable[str]) -> None:
        """Note every key that is not known, with the closest one that is."""
        names = tuple(known)
        for key in self.table:
            if key not in names:
                hint = did_you_mean(key.lower(), names) or f" Known keys: {', '.join(names)}."
                self.problems.append(f"{self.where}unknown key {key!r}.{hint}")

    def setting(self, key: str, kind: type) -> Setting | None:
        """Return the setting of a key, or None when it is absent or unusable.

        Args:
            key: The key.
            kind: `str`, `int`, `float` or `bool`; a bool is not taken for an int, an int is
                taken for a float.
        """
        if key not in self.table:
            return None
        return self._split(key, self.table[key], (float, int) if kind is float else (kind,))

    def settings(self, kinds: tuple[type, ...]) -> dict[str, Setting]:
        """Return all usable settings of this table; for tables with free keys."""
        found = {key: self._split(key, raw, kinds) for key, raw in self.table.items()}
        return {key: setting for key, setting in found.items() if setting is not None}

    def plain_text(self, key: str) -> str | None:
        """Return a text that needs no reason, or None when absent or unusable."""
        value = self.table.get(key)
        if value is None:
            return None
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            shown = _shown(value)
            self.problems.append(f"{self.where}{key} is {shown}; expected one line of text")
            return None
        return value

    def plain_flag(self, key: str) -> bool | None:
        """Return a true or false that needs no reason, or None when absent or unusable."""
        value = self.table.get(key)
        if value is None or isinstance(value, bool):
            return value
        self.problems.append(f"{self.where}{key} is {_shown(value)}; expected true or false")
        return None

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of texts; one text stands for a list of one."""
        value = self.table.get(key, [])
        items = [value] if isinstance(value, str) else value
        if isinstance(items, list) and all(isinstance(item, str) for item in items):
            return tuple(items)
        self.problems.append(f"{self.where}{key} is {_shown(value)}; expected a name or a list")
        return ()

    def _split(self, key: str, raw: object, kinds: tuple[type, ...]) -> Setting | None:
        value, reason, is_measured = raw, self.default_reason, self.is_measured
        if isinstance(raw, dict):
            inner = TableReader(raw, f"{self.where}{key}: ", None, self.problems)
            inner.check_keys(("value", "reason", *(["measured"] * self.takes_measured)))
            if "value" not in raw:
                self.problems.append(f"{self.where}{key} has no 'value'")
                return None
            value, reason = raw["value"], inner.plain_text("reason") or reason
            if self.takes_measured and (flag := inner.plain_flag("measured")) is not None:
                is_measured = flag
        if type(value) not in kinds:
            words = (_KIND_WORDS[kind] for kind in kinds if kind is not int or float not in kinds)
            expected = " or ".join(words)
            self.problems.append(f"{self.where}{key} is {_shown(value)}; expected {expected}")
            return None
        if reason is None:
            self.problems.append(f"{self.where}{key} has no 'reason'")
            return None
        return Setting(value, reason, is_measured)


def merge_measured(settings: Mapping[str, Setting]) -> dict[str, bool]:
    """Return key → whether the value was measured, where somebody says so."""
    found = {key: setting.is_measured for key, setting in settings.items()}
    return {key: flag for key, flag in found.items() if flag is not None}


def merge_reasons(settings: Mapping[str, Setting]) -> dict[str, str]:
    """Return key → reason."""
    return {key: setting.reason for key, setting in settings.items()}


def refuse_problems(label: str, problems: Sequence[str], fix: str) -> None:
    """Raise one error for all problems of a file; do nothing when there are none.

    Raises:
        UsageError: `problems` is not empty. `facts["problems"]` holds them all.
    """
    if not problems:
        return
    count = "1 problem" if len(problems) == 1 else f"{len(problems):,} problems"
    text = join_problems([problem.rstrip(".") for problem in problems])
    raise UsageError(f"{label} has {count}: {text}.", fix, problems=tuple(problems))


_KIND_WORDS = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}


def _shown(value: object) -> str:
    """Return a value as TOML would write it, cut to a readable length."""
    if isinstance(value, bool):
        return str(value).lower()
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        text = "a very large number"
    return text if len(text) <= 60 else f"{text[:57]}…"
