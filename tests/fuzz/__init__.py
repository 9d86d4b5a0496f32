"""Whatever is done to a file that dnc reads, it ends in success or in a DncError: never in another exception, a crash,
a hang, or memory running out.

    make fuzz SECONDS=600                       each fuzzer for ten minutes, with another seed each time
    python -m tests.fuzz cfg image --seed 5     these two, as they were
    python -m tests.fuzz cfg --case FOLDER      one case

A case is a folder of files. `fuzzers.py` has those that are right and what reads them; `mutation.py` changes a file by
what it is; `running.py` runs a case in a process that may take 20 s of the processor and 2 GiB for it. Cases that end
in a way that none did before are mutated further. One that ends badly is saved below build/fuzz/, once for each way.

corpus/FUZZER/NAME/ has cases that once ended badly; `test_fuzz.py` runs them, what is right and a few mutations, in the
default suite. `soak.py` does what is right, over and over, and counts what is left behind.
"""
