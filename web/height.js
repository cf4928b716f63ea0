// The height of a node whose content grows and shrinks.

/** Returns a function (height, least) of a node's heights now and at least: it grows the node, and later takes back only what it added. */
export function elastic() {
  let [last, added] = [null, 0]
  return (height, least) => {
    const own = height === last ? height - added : height // else the user has changed it
    last = Math.max(own, Math.ceil(least))
    added = last - own
    return last
  }
}
