;; No command and no system: one function with typed arguments, called by its name.
;; Built by: examples/build gcd-wat
(module
  (func (export "gcd") (param $a i64) (param $b i64) (result i64) (local $rest i64)
    (loop $next
      (if (i64.eqz (local.get $b)) (then (return (local.get $a))))
      (local.set $rest (i64.rem_u (local.get $a) (local.get $b)))
      (local.set $a (local.get $b))
      (local.set $b (local.get $rest))
      (br $next))
    (unreachable)))
