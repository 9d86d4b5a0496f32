"""Target `tvm`: from the graph to machine code (`compile`), and from there to numbers (`session`).

    emit        the graph -> Relax, channels last; builder, operators: its parts
    integers    8-bit numbers: convolutions and what lies between them
    halves      convolutions in bfloat16
    joining     which functions become one, where TVM does not see it
    pixels      preprocessing of images of any size (--input u8) as one function of the module
    schedules   how the loops of each function run
    functions   exp, sigmoid, tanh, ... as polynomials on vectors
    processor   what machine code may use, and whether a processor has it
    compile     the passes of TVM in order, and model.so
    session     runs model.so; needs TVM's runtime alone
    tuning      --tune: kernels chosen by measuring them
    remote      machines that measure: this one, or a device behind TVM's RPC
"""
