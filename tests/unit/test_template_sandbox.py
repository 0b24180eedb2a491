"""The sandbox: what the compiled code reports, and that nothing runs while compiling."""

from qwen_edge.runtime.template_sandbox import TemplateSandbox


def test_every_block_reports_its_constant_text() -> None:
    code = TemplateSandbox().compile("ab{% for x in y %}cde{% endfor %}", raw=True)
    assert "environment.budget.emit(2)" in code
    assert "environment.budget.emit(3)" in code


def test_constant_expressions_do_not_run_while_compiling() -> None:
    """Jinja2 folds constants, so a bomb could go off before any limit is set."""
    code = TemplateSandbox().compile("{{ 'ab' * 3 }}{{ 'x'|upper }}{{ 'a' ~ 'b' }}", raw=True)
    assert "ababab" not in code
    assert "'X'" not in code
    assert "concat_checked" in code


def test_only_these_functions_are_offered() -> None:
    assert set(TemplateSandbox().globals) == {
        "dict",
        "namespace",
        "raise_exception",
        "range",
        "strftime_now",
    }
