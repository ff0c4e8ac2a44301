#!/usr/bin/env node
// The compiler that forge runs: npm's solc (WebAssembly) behind the two calls that forge makes of a native solc,
// `--version` and `--standard-json`. Nothing is downloaded; forge hands over every source inside the JSON.
"use strict";
const fs = require("fs");
const solc = require("solc");

if (process.argv.includes("--version")) {
  const version = solc.version().replace(/\.Emscripten\.clang$/, ".Linux.g++");
  process.stdout.write(`solc, the solidity compiler commandline interface\nVersion: ${version}\n`);
} else if (process.argv.includes("--standard-json")) {
  process.stdout.write(solc.compile(fs.readFileSync(0, "utf8")));
} else {
  process.stderr.write("solc.cjs answers --version and --standard-json only\n");
  process.exitCode = 2;
}
