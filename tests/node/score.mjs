// Prepares raw rows, and scores them by ONNX Runtime for Node: {packed, rows, onnx} on standard input; onnx may be null.

import {open, readFile} from "node:fs/promises";
import {createRequire} from "node:module";
import {RawRowReader} from "../../dqrm_cpu/server/raw_rows.mjs";

const {packed, onnx, rows} = JSON.parse(await readFile("/dev/stdin", "utf8"));
const file = await open(packed);
const reader = await RawRowReader.open(async (begin, end) => {
  const {buffer} = await file.read(new Uint8Array(end - begin), 0, end - begin, begin);
  return buffer;
});
await file.close();

const found = rows.map((row) => {
  try {
    const {dense, ids} = reader.prepare([row]);
    return {dense: Array.from(dense), ids: Array.from(ids, Number)};
  } catch (error) {
    return {error: error.message};
  }
});
let probabilities = null;
if (onnx) {
  const ort = createRequire(`${process.argv[2]}/`)("onnxruntime-node");
  const session = await ort.InferenceSession.create(onnx);
  const {dense, ids} = reader.prepare(rows);
  const answer = await session.run({
    dense: new ort.Tensor("float32", dense, [rows.length, dense.length / rows.length]),
    ids: new ort.Tensor("int64", ids, [rows.length, ids.length / rows.length]),
  });
  probabilities = Array.from(answer.probabilities.data);
}
console.log(JSON.stringify({rows: found, probabilities}));
