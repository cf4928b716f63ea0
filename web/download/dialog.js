// A dialog that lists the models, their sizes and licences. Opens no connection: its links open when the user clicks them.

import { RELEASES, folder, gigabytes, page } from "./releases.js"

/** The user's choice, {model, source}, after accepting the licences; null without one. installed: names in the loader's list of files. */
export function chooseModel(words, installed) {
  const dialog = make("dialog", { className: "sa3-models" })
  const models = Object.keys(RELEASES).map(name => {
    const { gated, use, seconds } = RELEASES[name]
    const radio = make("input", { type: "radio", name: "model", value: name, disabled: installed.includes(folder(name)) })
    const access = make("span")
    const size = make("span")
    const update = source => {
      size.textContent = `${gigabytes(name, source).toFixed(1)} GB`
      access.textContent = words[radio.disabled ? "installed" : gated && source === "official" ? "gated" : "open"]
    }
    return { name, radio, update, row: make("label", {}, radio, make("b", {}, name), `${words.uses[use]}, ${words.seconds(seconds)}`, size, access) }
  })
  const mirror = make("input", { type: "checkbox", name: "mirror" })
  const accept = make("input", { type: "checkbox", name: "accept" })
  const login = make("p")
  const licences = make("span")
  const download = make("button", { value: "download", type: "submit" })
  const cancel = make("button", { value: "", type: "submit", formNoValidate: true }, words.cancel)
  const chosen = () => models.find(({ radio }) => radio.checked)?.name
  const source = () => (mirror.checked ? "mirror" : "official")
  const update = () => {
    const name = chosen()
    models.forEach(model => model.update(source()))
    download.disabled = !name || !accept.checked
    download.textContent = words.download(name ? gigabytes(name, source()).toFixed(1) : "–")
    if (!name) return
    login.hidden = !RELEASES[name].gated || mirror.checked
    login.replaceChildren(words.login(name), " ", link(page(name)))
    const files = ["LICENSE.md", "LICENSE_GEMMA.md"].map(file => link(`${page(name)}/blob/main/${file}`, file))
    licences.replaceChildren(words.accept, " ", files[0], ", ", files[1])
  }
  const first = models.find(({ radio }) => !radio.disabled)
  if (first) first.radio.checked = true
  const form = make(
    "form", { method: "dialog", onchange: update }, make("h3", {}, words.title), make("div", {}, ...models.map(({ row }) => row)),
    make("label", {}, mirror, words.mirror), login, make("p", {}, words.terms), make("label", {}, accept, licences), make("p", {}, words.target),
    make("menu", {}, cancel, download),
  )
  update()
  dialog.append(make("style", {}, STYLE), form)
  dialog.addEventListener("keydown", event => event.stopPropagation()) // no shortcuts of the canvas
  document.body.append(dialog)
  return new Promise(resolve => {
    dialog.addEventListener("close", () => {
      dialog.remove()
      resolve(dialog.returnValue === "download" ? { model: chosen(), source: source() } : null)
    })
    dialog.showModal()
  })
}

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties)
  element.append(...children)
  return element
}

function link(url, text = url) {
  return make("a", { href: url, target: "_blank", rel: "noopener" }, text)
}

const STYLE = `
.sa3-models { margin: auto; max-width: min(720px, 94vw); padding: 20px; border: 1px solid var(--border-color, #4e4e4e); border-radius: 10px;
  background: var(--comfy-menu-bg, #353535); color: var(--input-text, #ddd); font: 14px/1.45 Inter, system-ui, sans-serif; }
.sa3-models::backdrop { background: #0009; }
.sa3-models h3 { margin: 0 0 12px; font-size: 17px; }
.sa3-models form > div { display: grid; grid-template-columns: auto auto 1fr auto auto; gap: 4px 12px; margin-bottom: 12px; }
.sa3-models form > div label { display: grid; grid-template-columns: subgrid; grid-column: 1 / -1; cursor: pointer; }
.sa3-models form > label { display: grid; grid-template-columns: auto 1fr; gap: 8px; margin: 8px 0; cursor: pointer; }
.sa3-models input { align-self: baseline; position: relative; top: 2px; accent-color: var(--p-primary-color, #4aa3e0); }
.sa3-models p { margin: 8px 0; color: var(--descrip-text, #999); }
.sa3-models a { color: var(--p-primary-color, #4aa3e0); }
.sa3-models label > span { text-align: right; color: var(--descrip-text, #999); }
.sa3-models form > label > span { text-align: left; color: inherit; }
.sa3-models menu { display: flex; justify-content: flex-end; gap: 8px; margin: 16px 0 0; padding: 0; }
.sa3-models button { font: inherit; color: inherit; padding: 6px 14px; border: 1px solid var(--border-color, #4e4e4e); border-radius: 6px;
  background: var(--comfy-input-bg, #222); cursor: pointer; }
.sa3-models button:disabled { opacity: 0.5; cursor: default; }
`
