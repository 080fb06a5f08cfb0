"""`dqrm-cpu plan`: what more nodes and another network would bring, from a measurement of one machine."""
