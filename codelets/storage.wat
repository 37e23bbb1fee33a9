;; What a codelet keeps and passes on: maps and channels, as functions over two memories: the codelet's and the store's.
;;
;; One instance stands for one map or channel as one codelet sees it; codelets that are linked share the store's memory.
;; They run inside the sandbox and on the codelet's fuel: a wild pointer traps, and a long probe costs what it takes.
;; storage.py has the layout of the memory, which is read and written there too.
(module
  (import "guest" "memory" (memory $guest 1))
  (import "store" "memory" (memory $store 1))
  (import "store" "key" (global $key i32))         ;; bytes of a key
  (import "store" "value" (global $value i32))     ;; bytes of a value, or of a message at most
  (import "store" "entries" (global $entries i32)) ;; values of an array, entries of a hash map, messages of a channel
  (import "store" "stride" (global $stride i32))   ;; from one slot to the next
  (import "store" "slots" (global $slots i32))     ;; a power of two for a hash map and a channel
  (import "store" "region" (global $region i32))   ;; bytes of one thread's part

  (func $base (result i32)
    (i32.add (i32.const 64) (i32.mul (i32.load $store (i32.const 0)) (global.get $region))))

  ;; --- arrays: slot i holds the value of key i

  (func $element (param $at i32) (result i32) ;; the address of the value, 0 where there is none
    (local $index i32)
    (local.set $index (i32.load $guest (local.get $at)))
    (if (result i32) (i32.lt_u (local.get $index) (global.get $entries))
      (then (i32.add (i32.add (call $base) (i32.const 8)) (i32.mul (local.get $index) (global.get $stride))))
      (else (i32.const 0))))

  (func (export "array.lookup") (param $key_at i32) (param $value_at i32) (result i32)
    (local $element i32)
    (local.set $element (call $element (local.get $key_at)))
    (if (i32.eqz (local.get $element)) (then (return (i32.const 0))))
    (memory.copy $guest $store (local.get $value_at) (local.get $element) (global.get $value))
    (i32.const 1))

  (func (export "array.update") (param $key_at i32) (param $value_at i32) (result i32)
    (local $element i32)
    (local.set $element (call $element (local.get $key_at)))
    (if (i32.eqz (local.get $element)) (then (return (i32.const -1))))
    (memory.copy $store $guest (local.get $element) (local.get $value_at) (global.get $value))
    (i32.const 0))

  (func (export "array.delete") (param $key_at i32) (result i32) ;; as eBPF has it: an array's values are set to zero
    (local $element i32)
    (local.set $element (call $element (local.get $key_at)))
    (if (i32.eqz (local.get $element)) (then (return (i32.const -1))))
    (memory.fill $store (local.get $element) (i32.const 0) (global.get $value))
    (i32.const 0))

  ;; --- hash maps: linear probing; a slot begins with 1 where it is taken, its key 4 bytes on, then its value

  (func $home (param $memory_is_store i32) (param $at i32) (result i32) ;; FNV-1a, then mixed: its low bits decide
    (local $hash i32) (local $end i32)
    (local.set $hash (i32.const 0x811c9dc5))
    (local.set $end (i32.add (local.get $at) (global.get $key)))
    (loop $next
      (local.set $hash (i32.mul (i32.const 0x01000193) (i32.xor (local.get $hash)
        (if (result i32) (local.get $memory_is_store)
          (then (i32.load8_u $store (local.get $at)))
          (else (i32.load8_u $guest (local.get $at)))))))
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (br_if $next (i32.lt_u (local.get $at) (local.get $end))))
    (local.set $hash (i32.mul (i32.const 0x7feb352d) (i32.xor (local.get $hash) (i32.shr_u (local.get $hash) (i32.const 15)))))
    (i32.and (i32.xor (local.get $hash) (i32.shr_u (local.get $hash) (i32.const 16)))
             (i32.sub (global.get $slots) (i32.const 1))))

  (func $slot (param $index i32) (result i32)
    (i32.add (i32.add (call $base) (i32.const 8)) (i32.mul (local.get $index) (global.get $stride))))

  (func $after (param $index i32) (result i32)
    (i32.and (i32.add (local.get $index) (i32.const 1)) (i32.sub (global.get $slots) (i32.const 1))))

  (func $same (param $slot i32) (param $key_at i32) (result i32)
    (local $offset i32)
    (local.set $slot (i32.add (local.get $slot) (i32.const 4)))
    (loop $next
      (if (i32.ne (i32.load8_u $store (i32.add (local.get $slot) (local.get $offset)))
                  (i32.load8_u $guest (i32.add (local.get $key_at) (local.get $offset))))
        (then (return (i32.const 0))))
      (local.set $offset (i32.add (local.get $offset) (i32.const 1)))
      (br_if $next (i32.lt_u (local.get $offset) (global.get $key))))
    (i32.const 1))

  (func $find (param $key_at i32) (result i32) ;; the index of the key's slot, or of the free one where it would be
    (local $index i32) (local $slot i32)
    (local.set $index (call $home (i32.const 0) (local.get $key_at)))
    (loop $next
      (local.set $slot (call $slot (local.get $index)))
      (if (i32.eqz (i32.load $store (local.get $slot))) (then (return (local.get $index))))
      (if (call $same (local.get $slot) (local.get $key_at)) (then (return (local.get $index))))
      (local.set $index (call $after (local.get $index)))
      (br $next)) ;; ends: there are at least twice as many slots as entries
    (unreachable))

  (func $value_of (param $slot i32) (result i32)
    (i32.add (local.get $slot) (i32.add (i32.const 4) (global.get $key))))

  (func (export "hashmap.lookup") (param $key_at i32) (param $value_at i32) (result i32)
    (local $slot i32)
    (local.set $slot (call $slot (call $find (local.get $key_at))))
    (if (i32.eqz (i32.load $store (local.get $slot))) (then (return (i32.const 0))))
    (memory.copy $guest $store (local.get $value_at) (call $value_of (local.get $slot)) (global.get $value))
    (i32.const 1))

  (func (export "hashmap.update") (param $key_at i32) (param $value_at i32) (result i32)
    (local $slot i32) (local $count i32) (local $base i32) (local $value i32)
    (local.set $slot (call $slot (call $find (local.get $key_at))))
    (local.set $value (call $value_of (local.get $slot)))
    (local.set $base (call $base))
    (local.set $count (i32.load $store (local.get $base)))
    (if (i32.eqz (i32.load $store (local.get $slot)))
      (then
        (if (i32.ge_u (local.get $count) (global.get $entries)) (then (return (i32.const -1))))
        ;; a pointer that traps does so before the slot is taken
        (memory.copy $store $guest (local.get $value) (local.get $value_at) (global.get $value))
        (memory.copy $store $guest (i32.add (local.get $slot) (i32.const 4)) (local.get $key_at) (global.get $key))
        (i32.store $store (local.get $slot) (i32.const 1))
        (i32.store $store (local.get $base) (i32.add (local.get $count) (i32.const 1)))
        (return (i32.const 0))))
    (memory.copy $store $guest (local.get $value) (local.get $value_at) (global.get $value))
    (i32.const 0))

  (func (export "hashmap.delete") (param $key_at i32) (result i32)
    (local $hole i32)
    (local.set $hole (call $find (local.get $key_at)))
    (if (i32.eqz (i32.load $store (call $slot (local.get $hole)))) (then (return (i32.const -1))))
    (call $close (local.get $hole))
    (i32.const 0))

  (func (export "hashmap.repair") ;; goes on where a call ran out of fuel while it closed a hole
    (if (i32.load $store (i32.const 4)) (then (call $close (i32.sub (i32.load $store (i32.const 4)) (i32.const 1))))))

  ;; Where the hole is, and one more, stands at 4 meanwhile: fuel runs out at the head of a loop or function, and so never
  ;; between a move and the number of the hole that it leaves.
  (func $close (param $hole i32)
    (local $index i32) (local $home i32) (local $slot i32)
    (local.set $index (local.get $hole))
    (i32.store $store (i32.const 4) (i32.add (local.get $hole) (i32.const 1)))
    (block $done
      (loop $next ;; what was moved past the hole on its way moves into it, so that every probe still ends at a free slot
        (local.set $index (call $after (local.get $index)))
        (local.set $slot (call $slot (local.get $index)))
        (br_if $done (i32.eqz (i32.load $store (local.get $slot))))
        (local.set $home (call $home (i32.const 1) (i32.add (local.get $slot) (i32.const 4))))
        (br_if $next ;; its home lies behind the hole, and before it or in its own place: it stays
          (i32.lt_u
            (i32.and (i32.sub (local.get $index) (local.get $home)) (i32.sub (global.get $slots) (i32.const 1)))
            (i32.and (i32.sub (local.get $index) (local.get $hole)) (i32.sub (global.get $slots) (i32.const 1)))))
        (local.set $home (call $slot (local.get $hole)))
        (memory.copy $store $store (local.get $home) (local.get $slot) (global.get $stride))
        (i32.store $store (i32.const 4) (i32.add (local.get $index) (i32.const 1)))
        (local.set $hole (local.get $index))
        (br $next)))
    (local.set $slot (call $slot (local.get $hole)))
    (local.set $home (call $base))
    (i32.store $store (local.get $slot) (i32.const 0))
    (i32.store $store (local.get $home) (i32.sub (i32.load $store (local.get $home)) (i32.const 1)))
    (i32.store $store (i32.const 4) (i32.const 0)))

  (func $clear (export "array.clear") (export "hashmap.clear") (result i32)
    (memory.fill $store (call $base) (i32.const 0) (global.get $region))
    (i32.const 0))

  ;; --- channels: counts of messages written, read and lost, 4 bytes each, then slots of a length and the message

  (func $message (param $number i32) (result i32)
    (i32.add (i32.add (call $base) (i32.const 16))
      (i32.mul (i32.and (local.get $number) (i32.sub (global.get $slots) (i32.const 1))) (global.get $stride))))

  (func (export "output.send") (param $at i32) (param $size i32) (result i32)
    (local $written i32) (local $message i32)
    (local.set $written (i32.load $store (call $base)))
    (if (i32.gt_u (local.get $size) (global.get $value)) (then (return (i32.const -2))))
    (if (i32.ge_u (i32.sub (local.get $written) (i32.load $store offset=4 (call $base))) (global.get $entries))
      (then
        (i32.store $store offset=8 (call $base) (i32.add (i32.load $store offset=8 (call $base)) (i32.const 1)))
        (return (i32.const -1))))
    (local.set $message (call $message (local.get $written)))
    (memory.copy $store $guest (i32.add (local.get $message) (i32.const 4)) (local.get $at) (local.get $size))
    (i32.store $store (local.get $message) (local.get $size))
    (i32.store $store (call $base) (i32.add (local.get $written) (i32.const 1)))
    (i32.const 0))

  (func (export "input.receive") (param $at i32) (param $capacity i32) (result i32) ;; its size; -1: none; -2: too small
    (local $read i32) (local $message i32) (local $size i32)
    (local.set $read (i32.load $store offset=4 (call $base)))
    (if (i32.eq (local.get $read) (i32.load $store (call $base))) (then (return (i32.const -1))))
    (local.set $message (call $message (local.get $read)))
    (local.set $size (i32.load $store (local.get $message)))
    (if (i32.gt_u (local.get $size) (local.get $capacity)) (then (return (i32.const -2))))
    (memory.copy $guest $store (local.get $at) (i32.add (local.get $message) (i32.const 4)) (local.get $size))
    (i32.store $store offset=4 (call $base) (i32.add (local.get $read) (i32.const 1)))
    (local.get $size)))
