"""Watching a model decode: the monitor beside its weights, the live watch, traces read again.

The instruments of `trigger`, `monitor` and `serve`. The equations stand in `surgeon.neureasoner`;
here models run, and files are read and written: `monitor` is the artifact (`monitor.safetensors`),
`watching` the watcher of the decoder, `replay` the finished trace under the same detectors, `spans`
the files of labelled spans.
"""
