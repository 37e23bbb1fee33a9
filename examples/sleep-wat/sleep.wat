;; Sleeps an hour at a time, for ever: it is in a call of its host's nearly always.
;; Built by: examples/build sleep-wat
(module
  (import "wasi_snapshot_preview1" "poll_oneoff"
    (func $poll_oneoff (param $in i32) (param $out i32) (param $subscriptions i32) (param $events i32) (result i32)))
  (memory (export "memory") 1)
  ;; One subscription: user data, the kind (0, a clock), the clock (1, monotonic), the timeout in ns, precision, flags.
  (data (i32.const 16) "\01\00\00\00")
  (func (export "_start")
    (i64.store (i32.const 24) (i64.const 3600000000000))
    (loop $forever
      (drop (call $poll_oneoff (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))
      (br $forever))))
