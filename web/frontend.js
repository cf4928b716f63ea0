// What every extension of this pack asks of ComfyUI's front end.

import { app } from "../../scripts/app.js"

/** Calls `act`, with the same `this` and values, whenever `name` of `object` is called, behind what is there. */
export function after(object, name, act) {
  const before = object[name]
  object[name] = function (...values) {
    const result = before?.apply(this, values)
    act.apply(this, values)
    return result
  }
}

/** Of a table of words by language that of the editor, English where the table has none. */
export function spoken(words) {
  const language = String(app.extensionManager?.setting?.get("Comfy.Locale") ?? "en").split("-")[0]
  return words[language] ?? words.en
}
