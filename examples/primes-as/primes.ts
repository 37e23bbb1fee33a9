// Prints the primes up to its argument: a command in AssemblyScript, with the WASI shim.
// Built by: examples/build primes-as
function isPrime(number: i32): bool {
  for (let divisor = 2; divisor * divisor <= number; divisor++) {
    if (number % divisor == 0) return false;
  }
  return number > 1;
}

const limit = process.argv.length == 2 ? <i32>parseInt(process.argv[1]) : 0;
if (limit < 2) {
  process.stderr.write("usage: primes LIMIT, a number from 2 on\n");
  process.exit(2);
}
for (let number = 2; number <= limit; number++) {
  if (isPrime(number)) process.stdout.write(number.toString() + "\n");
}
