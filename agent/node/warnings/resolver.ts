/** Whether pods can have what the node's resolv.conf says (kubelet's CheckLimitsForResolvConf). Pure. */
import { parseResolvConf } from '../../pods/spec/sandbox_config.ts';

const mostDomains = 32;
/** The cluster's own, which pods get first. */
const clusterDomains = 3;
const longestDomain = 253;
const longestList = 2048;

/** In kubelet's words; undefined where all fits. `text`: of the file. */
export function resolverFault(file: string, text: string, clusterDomain: string): string | undefined {
  if (text.split('\n').some((line) => /^\s*nameserver\s*$/.test(line))) return 'nameserver list is empty ';
  const { searches } = parseResolvConf(text);
  const most = clusterDomain === '' ? mostDomains : mostDomains - clusterDomains;
  if (searches.length > most)
    return `Resolv.conf file '${file}' contains search line consisting of more than ${most} domains!`;
  if (searches.some((name) => name.length > longestDomain))
    return `Resolv.conf file ${JSON.stringify(file)} contains a search path which length is more than allowed ${longestDomain} chars!`;
  if (searches.join(' ').length > longestList)
    return `Resolv.conf file '${file}' contains search line which length is more than allowed ${longestList} chars!`;
  return undefined;
}
