;; Needs 32 MiB of memory to start with.
;; Built by: examples/build big-wat
(module
  (memory (export "memory") 512)
  (func (export "_start")))
