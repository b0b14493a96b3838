// A request as a program that sends it: to be pasted and run as it is.

const shellQuoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

const PYTHON = { true: "True", false: "False", null: "None" };

function pythonValue(value) {
  if (Array.isArray(value)) return `[${value.map(pythonValue).join(", ")}]`;
  if (value && typeof value === "object") return `{${Object.entries(value).map(([name, one]) => `${JSON.stringify(name)}: ${pythonValue(one)}`).join(", ")}}`;
  return typeof value === "string" ? JSON.stringify(value) : (PYTHON[value] ?? String(value));
}

export function curl(request, origin, hasKey) {
  const key = hasKey ? ` \\\n  -H "Authorization: Bearer $REVERIE_API_KEY"` : "";
  return `curl ${origin}/generate${key} \\
  -H 'Content-Type: application/json' -H 'Prefer: wait=60' \\
  -d ${shellQuoted(JSON.stringify(request))}`;
}

/** The client reads REVERIE_API_KEY by itself. */
export function python(request, origin) {
  const fields = Object.entries(request).map(([name, value]) => `        ${name}=${pythonValue(value)},\n`);
  return `from service.client import Client

with Client("${origin}") as client:
    for picture in client.generate(
${fields.join("")}    ):
        print(picture.save())
`;
}

export function javascript(request, origin, hasKey) {
  const key = hasKey ? `,\n  Authorization: \`Bearer \${process.env.REVERIE_API_KEY}\`` : "";
  return `const origin = ${JSON.stringify(origin)};
const headers = {
  "Content-Type": "application/json",
  Prefer: "wait=60"${key},
};
const body = JSON.stringify(${JSON.stringify(request, null, 2)});
const answer = await fetch(origin + "/generate", { method: "POST", headers, body });
const job = await answer.json();
const files = await Promise.all(job.images.map((image) => fetch(origin + image.url, { headers })));
const blobs = await Promise.all(files.map((file) => file.blob()));
`;
}

export const LANGUAGES = { curl, Python: python, JavaScript: javascript };
