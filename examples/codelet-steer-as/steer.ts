// On the forwarder's ingress: packets of up to 200 bytes go to queue 0, which is served first, longer ones to queue 1.
// The border comes over the input channel `border` as four bytes and is kept in a map.

@external("helper", "set_queue")
declare function setQueue(queue: u32): void;
@external("map:array:4:4:1", "border.lookup")
declare function borderLookup(key: usize, value: usize): i32;
@external("map:array:4:4:1", "border.update")
declare function borderUpdate(key: usize, value: usize): i32;
@external("input:4:16", "borders.receive")
declare function bordersReceive(message: usize, capacity: usize): i32;

const KEY = memory.data(4);
const VALUE = memory.data(4);
const DEFAULT: u32 = 200;

export function codelet_main(context: usize): i64 {
  if (bordersReceive(VALUE, 4) == 4) borderUpdate(KEY, VALUE);
  borderLookup(KEY, VALUE);
  let border = load<u32>(VALUE);
  if (border == 0) border = DEFAULT;
  const size = load<u32>(context); // forwarder.Ingress: size, port
  setQueue(size <= border ? 0 : 1);
  return 0;
}
