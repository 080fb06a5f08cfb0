"""How functions that only compiled code calls are compiled: as parts of their callers.

numba would optimize each of them as a whole program and make machine code of it that nobody runs, then do both again
with every caller that it is linked into: half of what LLVM did. A part stays as its functions' own passes left it until
it stands in what Python calls.
"""

from typing import Any

from numba import _dynfunc  # type: ignore[attr-defined]
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import register_pass
from numba.core.typed_passes import NativeLowering


class _PartLibrary(JITCodeLibrary):
    """LLVM code to be linked into that of callers."""

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._verify_declare_only_symbols()
        self._finalized = True


@register_pass(mutates_CFG=True, analysis_only=False)
class _PartLowering(NativeLowering):
    """Translates to LLVM what numba's own pass would also compile."""

    _name = "part_lowering"

    def run_pass(self, state: Any) -> bool:
        state.library = _PartLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = True
        super().run_pass(state)
        result = state["cr"]
        # Python has no way in: of the function that it would call, numba only needs that it is another one each time.
        name = result.fndesc.qualname.rpartition(".")[2]
        entry = _dynfunc.make_function(result.fndesc.lookup_module(), name, "", 0, result.env, (state.library,))
        state.targetctx.insert_user_function(entry, result.fndesc, [state.library])
        state.reload_init.extend(state.library._reload_init)
        state["cr"] = result._replace(cfunc=entry)
        return True


class PartCompiler(CompilerBase):
    """numba's compiler with another last step."""

    def define_pipelines(self) -> list[Any]:
        passes = DefaultPassBuilder.define_nopython_pipeline(self.state)
        passes.passes = [(_PartLowering if step is NativeLowering else step, what) for step, what in passes.passes]
        passes.finalize()
        return [passes]
