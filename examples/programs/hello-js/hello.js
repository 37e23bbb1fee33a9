export const run = {
  run() {
    const squares = [1, 2, 3].map((number) => number * number);
    console.log(`Hello from JavaScript, inside a keep! ${JSON.stringify({ squares })}`);
  },
};
