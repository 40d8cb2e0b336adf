// Holds exchanges against GitHub's OpenAPI description: reads them as JSON from standard input,
// prints what is wrong with each.
import { readFileSync } from "node:fs";
import Ajv from "ajv";
import addFormats from "ajv-formats";

const text = readFileSync("node_modules/@octokit/openapi/generated/api.github.com.json");
// OpenAPI 3.0 says "nullable" where JSON Schema says that null is one of the types.
const api = JSON.parse(text, (_, value) => {
  if (value?.nullable !== true) return value;
  const { nullable, ...rest } = value;
  return { anyOf: [{ type: "null" }, rest] };
});
// Its list of installations demands that an account be a user and an enterprise at once (allOf),
// where the installation itself may be either (anyOf).
const { account } = api.components.schemas.installation.properties;
const listed = api.paths["/app/installations"].get.responses["200"].content["application/json"];
listed.schema.items.properties.account = account;
// A description is no schema: its own keywords (example, discriminator) say nothing about values.
const ajv = new Ajv({ strict: false, allErrors: true });
addFormats(ajv);
ajv.addSchema({ $id: "github", components: api.components });

const whole = (schema) =>
  JSON.parse(JSON.stringify(schema).replaceAll('"#/components/', '"github#/components/'));
const resolved = (part) =>
  part?.$ref ? part.$ref.slice(2).split("/").reduce((at, name) => at[name], api) : part;

const paths = Object.entries(api.paths).map(([path, operations]) => ({
  pattern: new RegExp(`^${path.replace(/\{[^}]+\}/g, "[^/]+")}$`),
  // Of two that match, the one with fewer placeholders is meant.
  placeholders: path.split("{").length,
  operations,
}));

function complaints(exchange) {
  const found = paths
    .filter((each) => each.pattern.test(exchange.path) && each.operations[exchange.method.toLowerCase()])
    .sort((a, b) => a.placeholders - b.placeholders)[0];
  if (!found) return ["GitHub has no such operation"];
  const operation = found.operations[exchange.method.toLowerCase()];
  const wrong = [];
  const check = (schema, value, where) => {
    const valid = ajv.compile(whole(schema));
    if (!valid(value)) wrong.push(`${where}: ${ajv.errorsText(valid.errors.slice(0, 5))}`);
  };
  const parameters = (operation.parameters ?? []).map(resolved).filter((each) => each.in === "query");
  for (const [name, text] of Object.entries(exchange.query)) {
    const parameter = parameters.find((each) => each.name === name);
    if (!parameter) wrong.push(`there is no query parameter ${name}`);
    else check(parameter.schema, parameter.schema.type === "integer" ? Number(text) : text, name);
  }
  const body = resolved(operation.requestBody);
  if (exchange.body !== null) {
    if (!body) wrong.push("it takes no body");
    else check(body.content["application/json"].schema, exchange.body, "body");
  } else if (body?.required) wrong.push("it needs a body");
  const response = resolved(operation.responses[exchange.status]);
  const shape = response?.content?.["application/json"]?.schema;
  // Not every operation lists the errors that all of them have.
  if (!response && exchange.status >= 400) check(api.components.schemas["basic-error"], exchange.content, "answer");
  else if (!response) wrong.push(`it does not answer ${exchange.status}`);
  else if (shape) check(shape, exchange.content, `answer ${exchange.status}`);
  return wrong.map((text) => `${exchange.method} ${exchange.path}: ${text}`);
}

const exchanges = JSON.parse(readFileSync(0));
console.log(JSON.stringify(exchanges.flatMap(complaints)));
