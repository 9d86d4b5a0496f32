"""A network that is launched as CUDA graphs: `with_graphs` gives a module a second function beside `main`.

Both compute the same with the same kernels. In the second one, TVM's RewriteCUDAGraph puts what it can into functions
that TVM's runtime runs once, records, and launches as one graph from then on:

    recorded        kernels that read weights, inputs and memory of the network's own, which is kept for good
    launched        kernels that write an output, which is new memory in each run

So an input has to lie where it lay when the graph was recorded (`dnc.runtime.runners.cuda.kernels` sees to that), and a
network with several heads is several graphs. Which of the two functions is run is decided where the engine is opened.
What prepares images of any size is a function of its own, and in neither.
"""

from __future__ import annotations

from typing import Any

from tvm import IRModule, relax, transform

from dnc.runtime.runners.cuda.kernels import GRAPHS, MAIN, PREPARE

__all__ = ["with_graphs"]

_FIXED = "num_input"
"""The attribute that says how many parameters may lie elsewhere in each run."""
_SWITCH = "relax.backend.use_cuda_graph"


def with_graphs(module: Any) -> Any:
    """The module with the second function.

    Args:
        module: of Relax, after StaticPlanBlockMemory, without dataflow blocks.
    """
    main = module[MAIN]
    copy = main.with_attr("global_symbol", GRAPHS)
    copy = copy.with_attr(_FIXED, 0)
    functions = {name: function for name, function in module.functions.items() if name.name_hint not in (MAIN, PREPARE)}
    other = IRModule(functions)
    other[GRAPHS] = relax.utils.copy_with_new_vars(copy)
    context = transform.PassContext.current()
    with transform.PassContext(opt_level=context.opt_level, config={**context.config, _SWITCH: True}):
        other = relax.transform.RewriteCUDAGraph()(other)
    result = module.clone()
    for name, function in other.functions.items():
        if isinstance(function, relax.Function):
            result.update_func(name, function)
    return result
