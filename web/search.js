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
    const names = stores?.get("nodeDef")?.nodeSearchService?.nodeFuseSearch
    if (!names || names.keys.includes(ALIASES)) return
    const Search = names.constructor
    const { search } = Search.prototype
    Search.prototype.search = function (query, options) {
      if (!this.keys.includes("display_name")) return search.call(this, query, options) // of types and categories
      const fuseOptions = { ...this.fuse.options, keys: [...this.keys, ALIASES] }
      this.withAliases ??= new Search(this.data, { fuseOptions, advancedScoring: this.advancedScoring })
      return search.call(this.withAliases, query, options)
    }
  },
})
