"""`qwen-edge profiles`: what each profile sets, and why."""

import click

from qwen_edge.cli.output import Output
from qwen_edge.errors import UsageError, did_you_mean
from qwen_edge.profiles.choose import Choice, choose_profile
from qwen_edge.profiles.device import DeviceProfile
from qwen_edge.profiles.hardware import probe_hardware
from qwen_edge.profiles.legality import legality
from qwen_edge.profiles.profile import Profile, load_profile, profile_names
from qwen_edge.profiles.recipe import load_recipe, recipe_names

_Allowed = dict[str, dict[str, Choice[bool]]]


class _Profiles(click.Group):
    """A group that says what was meant by `profiles NAME`."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; explain `show` to whoever left it out."""
        name = args[0] if args else ""
        if not name.startswith("-") and name not in self.commands:
            profile = name if name.endswith(".toml") or name in profile_names() else ""
            raise UsageError(
                f"`profiles` has no command {name!r}.{did_you_mean(name, self.commands)}",
                f"qwen-edge profiles show {profile or 'NAME'}, with one of: "
                + ", ".join(profile_names()),
                command=name,
            )
        return super().resolve_command(ctx, args)


@click.group("profiles", cls=_Profiles, invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """List the profiles: what each kind of machine is given.

    \b
    Examples:
      qwen-edge profiles
      qwen-edge profiles show core-ultra
      qwen-edge profiles show ./my-laptop.toml --json
    """
    if ctx.invoked_subcommand is not None:
        return
    out = Output(as_json=as_json)
    fitting = choose_profile(probe_hardware())
    profiles = [load_profile(name) for name in profile_names()]
    if as_json:
        out.result_json(
            {
                "profiles": [profile.to_json() for profile in profiles],
                "fits_this_machine": {"value": fitting.value, "reason": fitting.reason},
            }
        )
        return
    rows = [
        [
            profile.name,
            ", ".join(entry.device for entry in profile.devices),
            profile.format,
            profile.recipe,
            profile.summary,
        ]
        for profile in profiles
    ]
    out.table(["profile", "devices", "format", "recipe", "what for"], rows)
    out.notice(f"\nFor this machine: {fitting.value} ({fitting.reason})")


@command.command("show", short_help="Print one profile with the reason for every value.")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_context
def show(ctx: click.Context, name: str, as_json: bool) -> None:
    """Print the profile NAME with the reason for every value.

    NAME is one of `qwen-edge profiles`, or a TOML file of your own.
    """
    # `profiles --json show NAME` means the same.
    as_json = as_json or (ctx.parent is not None and bool(ctx.parent.params.get("as_json")))
    out = Output(as_json=as_json)
    profile = load_profile(name)
    allowed: _Allowed = {
        recipe.name: {entry.device: legality(recipe, entry.device) for entry in profile.devices}
        for recipe in map(load_recipe, recipe_names())
    }
    if as_json:
        out.result_json(profile.to_json() | {"recipes": allowed})
        return
    _show_text(out, profile, allowed)


def _mark(entry: DeviceProfile, key: str) -> str:
    """Return what is said of a value that nobody measured."""
    return f" [never measured on a {entry.device}]" if entry.measured.get(key) is False else ""


def _show_text(out: Output, profile: Profile, allowed: _Allowed) -> None:
    out.result(f"{profile.name}: {profile.summary}")
    out.result(f"\nrecipe {profile.recipe}\n    {profile.recipe_reason}")
    out.result(f"\nformat {profile.format}\n    {profile.format_reason}")
    for entry in profile.devices:
        out.result(f"\n{entry.device}: {entry.reasons.get('device', '')}".rstrip(": "))
        for key, reason in entry.reasons.items():
            if key == "device":
                continue
            value = entry.properties.get(key, getattr(entry, key, ""))
            out.result(f"  {key} = {value}\n      {reason}{_mark(entry, key)}")
        if entry.note:
            out.result(f"  Note: {entry.note}")
    out.result("\nONNX Runtime, where the ONNX form is exported")
    for key, reason in profile.onnx.reasons.items():
        out.result(f"  {key} = {getattr(profile.onnx, key)}\n      {reason}")
    out.result("\nrecipes, with OpenVINO (ONNX Runtime takes every recipe)")
    for recipe, devices in allowed.items():
        for device, choice in devices.items():
            mark = "yes" if choice.value else "no"
            out.result(f"  {recipe:<14} {device}: {mark}. {choice.reason}")
