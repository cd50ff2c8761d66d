"""Classes of primitives, by what they do with the elements of their operands."""

#: Primitives that only lay out, copy or select elements.
LAYOUT = frozenset(
    "all_gather broadcast_in_dim concatenate convert_element_type copy copy_p dynamic_slice "
    "dynamic_update_slice expand_dims gather name optimization_barrier pad pvary reduce_precision "
    "reshape rev scatter select_n sharding_constraint slice split squeeze stack tile transpose "
    "unstack".split()
)
#: Primitives each of whose results is an element of the operand.
SELECTING = frozenset(
    "argsort cummax cummin reduce_max reduce_min reduce_window_max reduce_window_min sort "
    "top_k".split()
)
#: Layout primitives that read or write elements at indices, which may be computed.
INDEXING = frozenset("dynamic_slice dynamic_update_slice gather scatter".split())
#: Primitives that sum elements.
SUMMING = frozenset("cumsum reduce_sum reduce_window_sum scatter-add scatter_add".split())
#: Reductions whose result is a statistic of the operand's elements.
POOLING = frozenset("reduce_max reduce_min reduce_sum".split())
#: Primitives that are linear in either operand and sum over products.
CONTRACTING = frozenset("conv_general_dilated dot_general".split())
#: Primitives that add or subtract two operands.
ADDING = frozenset("add add_any sub".split())
#: Primitives of numbers that may be integers or truth values, as far as differences of these are
#: propagated.
COUNTING = SUMMING | frozenset("cummax cummin reduce_and reduce_max reduce_min reduce_or".split())
#: The positions of the operands that select elements: indices and predicates.
CHOOSING = {
    "dynamic_slice": slice(1, None),
    "dynamic_update_slice": slice(2, None),
    "gather": slice(1, 2),
    "scatter": slice(1, 2),
    "scatter-add": slice(1, 2),
    "scatter_add": slice(1, 2),
    "select_n": slice(0, 1),
}
