// The style of the batch list, in the colours of ComfyUI's theme.

const CSS = `
.sa3-batch { pointer-events: auto; display: flex; flex-direction: column; gap: 6px; box-sizing: border-box; width: 100%; height: 100%;
  overflow: hidden; font: 12px/1.35 Inter, system-ui, sans-serif; color: var(--input-text, #ddd); user-select: none; }
.sa3-batch button { font: inherit; color: inherit; cursor: pointer; border: 1px solid var(--border-color, #4e4e4e); border-radius: 5px;
  background: var(--comfy-input-bg, #222); padding: 2px 8px; }
.sa3-batch button:hover { filter: brightness(1.25); }
.sa3-batch :focus-visible { outline: 2px solid var(--p-primary-color, #4aa3e0); outline-offset: 1px; }
.sa3-batch-head { display: flex; align-items: center; gap: 6px; flex: none; }
.sa3-batch-head span { flex: 1; color: var(--descrip-text, #999); overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.sa3-batch-head.sa3-unclear span { color: #ef8f6b; }
.sa3-batch-list { display: flex; flex-direction: column; gap: 6px; flex: 1; min-height: 0; overflow-y: auto; padding: 2px; }
.sa3-batch-row { display: grid; grid-template: "keep play picture sides" minmax(50px, 1fr) "keep facts facts facts" auto / 24px 34px 1fr auto;
  gap: 3px 6px; flex: 1 0 80px; max-height: 160px; padding: 5px; border: 1px solid var(--border-color, #4e4e4e); border-radius: 8px;
  background: var(--comfy-menu-bg, #353535); outline-offset: -2px; }
.sa3-batch-row.sa3-dropped .sa3-batch-picture img, .sa3-batch-row.sa3-dropped .sa3-batch-levels { opacity: 0.5; }
.sa3-batch-row.sa3-playing { border-color: var(--p-primary-color, #4aa3e0); }
.sa3-batch-keep { grid-area: keep; display: flex; flex-direction: column; align-items: center; justify-content: center; gap: 4px;
  cursor: pointer; color: var(--descrip-text, #999); }
.sa3-batch-keep input { width: 16px; height: 16px; margin: 0; cursor: inherit; accent-color: var(--p-primary-color, #4aa3e0); }
.sa3-batch-play { grid-area: play; padding: 0 !important; font-size: 14px !important; }
.sa3-batch-picture { grid-area: picture; position: relative; overflow: hidden; border-radius: 4px; cursor: crosshair; touch-action: none;
  background: #0e1016; min-width: 0; }
.sa3-batch-picture img { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: fill; pointer-events: none; }
.sa3-batch-picture i { position: absolute; top: 0; bottom: 0; width: 2px; margin-left: -1px; background: #fff; mix-blend-mode: difference; }
.sa3-batch-picture span { position: absolute; right: 4px; top: 3px; padding: 0 4px; border-radius: 3px; font-size: 10px; line-height: 14px; color: #fff;
  background: #000b; font-variant-numeric: tabular-nums; pointer-events: none; }
.sa3-batch-sides { grid-area: sides; display: flex; flex-direction: column; gap: 3px; }
.sa3-batch-sides button { flex: 1; padding: 0 9px; font-weight: 600; }
.sa3-batch-sides button[aria-pressed=true] { background: var(--p-primary-color, #4aa3e0); color: #fff; }
.sa3-batch-facts { grid-area: facts; display: flex; gap: 6px; min-width: 0; white-space: nowrap; font-size: 11px;
  color: var(--descrip-text, #aaa); font-variant-numeric: tabular-nums; }
.sa3-batch-levels { display: flex; gap: 7px; flex: 1; min-width: 0; overflow: hidden; align-items: center; }
.sa3-batch-facts b { font-weight: 600; padding: 0 6px; border-radius: 8px; background: #3b6e4a; color: #fff; }
.sa3-batch-facts b[data-verdict=silent], .sa3-batch-facts b[data-verdict=sparse] { background: #86702b; }
.sa3-batch-facts b[data-verdict=clipped], .sa3-batch-facts b[data-verdict=broken] { background: #a04436; }
.sa3-batch-tools { display: flex; gap: 4px; flex: none; }
.sa3-batch-tools button { padding: 0 5px; font-size: 11px; line-height: 15px; }
.sa3-batch-tools button:disabled { cursor: default; opacity: 1; }
.sa3-batch-grip { cursor: grab; padding: 0 2px; line-height: 17px; user-select: auto; -webkit-user-drag: element; }
.sa3-batch-empty, .sa3-batch-gone { color: var(--descrip-text, #999); padding: 8px; text-align: center; }
.sa3-batch-gone { grid-area: picture; align-self: center; padding: 0; }
`

export function addStyle() {
  if (document.getElementById("sa3-batch-style")) return
  const style = document.createElement("style")
  style.id = "sa3-batch-style"
  style.textContent = CSS
  document.head.append(style)
}
