"""The table of versions."""

from __future__ import annotations

from tests.tools.tool_runs import load_tool

FOUND = dict(python='3.11.7', torch='2.1.2', names={'onedl-mmengine': '0.10.12', 'numpy': '2.2.6'})


def test_a_row_takes_the_place_of_an_older_one_of_the_same_versions_and_tests():
    tool = load_tool('stacks')
    page = f'before\n{tool.START}\n\n{tool.END}\nafter\n'
    older = tool.row(FOUND, ['tests/losses'], dict(passed=3, failed=1, error=1))
    assert older[:8] == [
        'onedl', '3.11.7', '2.1.2', 'mmengine 0.10.12, numpy 2.2.6', 'losses', '3', '0', '2',
    ]  # fmt: skip
    newer = tool.row(FOUND, ['tests/losses'], dict(passed=5))
    other = tool.row(FOUND, ['tests/terms'], dict(passed=1, skipped=2))
    page = tool.merged(tool.merged(page, [older]), [newer, other])
    rows = [line for line in page.splitlines() if line.startswith('|')]
    assert [row.split(' | ')[4:8] for row in rows[2:]] == [
        ['losses', '5', '0', '0'],
        ['terms', '1', '2', '0'],
    ]
    assert page.startswith('before\n') and page.endswith('\nafter\n')
