// Front ends that search only the names of nodes also search this pack's words, ranked as newer front ends rank search_aliases.

import { app } from "../../scripts/app.js"

const ALIASES = "search_aliases"

app.registerExtension({
  name: "StableAudio3.Search",
  async addCustomNodeDefs(defs) {
    if (defs.SA3_Sampler?.[ALIASES]) return // from a ComfyUI whose schemas have search_aliases
    const words = await (await fetch(new URL("./search_words.json", import.meta.url))).json()
    for (const id in words) if (defs[id]) defs[id][ALIASES] = words[id]
  },
  setup() {
    const stores = document.getElementById("vue-app")?.__vue_app__?.config.globalProperties.$pinia?._s
    const service = stores?.get("nodeDef")?.nodeSearchService
    if (!service?.nodeFuseSearch || service.nodeFuseSearch.keys.includes(ALIASES)) return
    const Nodes = service.constructor.prototype
    const { searchNode } = Nodes
    Nodes.searchNode = function (...query) {
      if (!Object.hasOwn(this.nodeFuseSearch, "search")) addAliases(this.nodeFuseSearch) // a new one after each change of the nodes
      return searchNode.apply(this, query)
    }
  },
})

/** Makes a search by names one by names and words. */
function addAliases(names) {
  const fuseOptions = { ...names.fuse.options, keys: [...names.keys, ALIASES] }
  const extended = new names.constructor(names.data, { fuseOptions, advancedScoring: names.advancedScoring })
  names.search = (...query) => extended.search(...query)
}
