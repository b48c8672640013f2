// node with_node.mjs MODEL GOLDEN: ONNX Runtime for Node replays the golden sample and prints its outputs as JSON.
import {readFileSync} from "node:fs"
import {createRequire} from "node:module"

const require = createRequire(process.cwd() + "/")
const ort = require("onnxruntime-node")
const [model, golden] = process.argv.slice(2)
const {cases, image_shape} = JSON.parse(readFileSync(golden, "utf8"))
const session = await ort.InferenceSession.create(model)
const pixels = Uint8Array.from(cases.flatMap(({image}) => image))
const outputs = await session.run({image: new ort.Tensor("uint8", pixels, [cases.length, ...image_shape])})
const rows = name => cases.map((_, index) => {
  const classes = outputs[name].dims[1]
  return Array.from(outputs[name].data.slice(index * classes, (index + 1) * classes))
})
const logits = rows("logits"), probabilities = rows("probabilities")
const answers = cases.map((_, index) => ({logits: logits[index], probabilities: probabilities[index]}))
console.log(JSON.stringify({version: require("onnxruntime-node/package.json").version, answers}))
