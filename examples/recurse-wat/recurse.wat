;; Calls itself until its stack is exhausted: a trap, with the function's name in the backtrace.
;; Built by: examples/build recurse-wat
(module
  (func $deeper (param $depth i32) (result i32)
    (i32.add (i32.const 1) (call $deeper (i32.add (local.get $depth) (i32.const 1)))))
  (func (export "_start")
    (drop (call $deeper (i32.const 0)))))
