"use strict";
const { Pool } = require("../../../examples/script-pool-node/script-pool.js");

(async () => {
  const pool = new Pool({ command: process.argv.slice(2) });
  await pool.add("double", "double x");
  await pool.add("bad", "throw TypeError why");
  const doubled = (await pool.run("double", { x: 21 })).x;
  const reason = await pool.run("bad", {}).catch((error) => error.reason);
  const many = await Promise.all(Array.from({ length: 20 }, (_, x) => pool.run("double", { x: x / 2 })));
  await pool.close();
  console.log(JSON.stringify({ doubled, reason, many: many.reduce((sum, { x }) => sum + x, 0) }));
})();
