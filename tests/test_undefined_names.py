"""Every name that a module reads is defined in it, imported or a builtin.

The linter's own check is off: it takes the shape strings of jaxtyping for names.
"""

import builtins
import symtable
from collections.abc import Iterator
from pathlib import Path

import ufm

ROOT = Path(ufm.__file__).parent
MODULE_NAMES = {"__name__", "__file__", "__doc__", "__path__", "__spec__", "__annotations__"}


def undefined_names(code: str) -> set[str]:
    module = symtable.symtable(code, "module", "exec")
    known = {symbol.get_name() for symbol in module.get_symbols() if _is_bound(symbol)}
    known |= {name for scope in _scopes(module) for name in _declared_global(scope)}
    read = {
        symbol.get_name()
        for scope in _scopes(module)
        for symbol in scope.get_symbols()
        if symbol.is_referenced() and symbol.is_global()
    }
    return read - known - set(dir(builtins)) - MODULE_NAMES


def _is_bound(symbol: symtable.Symbol) -> bool:
    return symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()


def _declared_global(scope: symtable.SymbolTable) -> Iterator[str]:
    return (s.get_name() for s in scope.get_symbols() if s.is_declared_global())


def _scopes(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield table
    for child in table.get_children():
        yield from _scopes(child)


def test_no_module_reads_a_name_that_it_does_not_define() -> None:
    modules = {path: undefined_names(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}
    assert len(modules) > 100
    assert {str(path): names for path, names in modules.items() if names} == {}


def test_an_undefined_name_is_seen() -> None:
    assert undefined_names("def f():\n    return g(len([x for x in h]))\n") == {"g", "h"}
    assert undefined_names("import g\nh = 1\ndef f():\n    return g(h)\n") == set()
