// What the extensions of this pack need from ComfyUI's front end.

import { app } from "../../scripts/app.js"

/** Calls `act` with the same `this` and arguments after each call of `object[name]`, which may be missing. */
export function after(object, name, act) {
  const original = object[name]
  object[name] = function (...values) {
    const result = original?.apply(this, values)
    act.apply(this, values)
    return result
  }
}

/** The front end's language without its region: "en", "zh", "ja", ... */
export function language() {
  return String(app.extensionManager?.setting?.get("Comfy.Locale") ?? "en").split("-")[0]
}

/** The entry of a table by language for the front end's language, else the English one. */
export function localized(table) {
  return table[language()] ?? table.en
}
