"""`dnc bench`: how fast engines are, measured so that the figures can be quoted, and failed on in CI.

    subject     what is timed: an engine folder with its threads, batch and callers
    peers       other readers of the same network, each in a process of its own
    yardstick   a fixed piece of work, timed in turn with the engines: how fast the machine itself was just then
    child       start-up time and peak memory, in a fresh process
    energy      joules, by RAPL or NVML
    measure     all of these together: a Recording, which --json writes and --diff reads
    machine     what it was measured on
    layers      time by section of the cfg, against the peaks that `peaks` measures; what they compute is in `work`
    end_to_end  images, video or a camera to boxes
    difference  two recordings, or two engines: has it become slower?
    report, plot    tables, Markdown, pictures

Engines are opened anew and timed in turn by `dnc.bench.timing.compete`. This module imports nothing, because the
child process of a start-up measurement passes through it.
"""
